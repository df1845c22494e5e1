{{/* Secrets of the chart that reach nodes as variables, so that nodes are replaced when they change. */}}

{{/* By the names of the Secrets, what is in them (base64), as JSON. What is random is new each time until it is in the
cluster. */}}
{{- define "rookery.secrets" -}}
{{- $fullname := include "rookery.fullname" . -}}
{{- $found := dict -}}
{{- $data := dict -}}
{{- if not .Values.auth.admin.existingSecret -}}
{{- with .Values.auth.admin.secret -}}
{{- if lt (len .) 8 -}}{{- fail "auth.admin.secret: at least 8 characters" -}}{{- end -}}
{{- end -}}
{{- $_ := set $data "admin-secret" (include "rookery.kept" (dict "root" . "name" $fullname "key" "admin-secret" "given" .Values.auth.admin.secret)) -}}
{{- end -}}
{{- if .Values.redis.enabled -}}
{{- if not .Values.redis.auth.existingSecret -}}
{{- $name := include "rookery.redis.fullname" . -}}
{{- $_ := set $found $name (dict "redis-password" (include "rookery.kept" (dict "root" . "name" $name "key" "redis-password" "given" .Values.redis.auth.password))) -}}
{{- end -}}
{{- else if not .Values.externalRedis.existingSecret -}}
{{- with .Values.externalRedis.password -}}{{- $_ := set $data "redis-password" (b64enc .) -}}{{- end -}}
{{- with .Values.externalRedis.sentinel.password -}}{{- $_ := set $data "sentinel-password" (b64enc .) -}}{{- end -}}
{{- end -}}
{{- if $data -}}{{- $_ := set $found $fullname $data -}}{{- end -}}
{{- if .Values.secretConfig -}}
{{- $settings := dict -}}
{{- range $variable, $text := include "rookery.secretSettings" . | fromJson -}}
{{- $_ := set $settings $variable (b64enc $text) -}}
{{- end -}}
{{- $_ := set $found (printf "%s-settings" $fullname) $settings -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}

{{/* The revision of the release in which that Secret was changed last. A hash of passwords, which annotations of pods show to
more people than may read Secrets, would let them try guesses. Rendered without the cluster it is always 1. Arguments:
root, name, data. */}}
{{- define "rookery.secretRevision" -}}
{{- $old := lookup "v1" "Secret" .root.Release.Namespace .name -}}
{{- if not $old -}}
1
{{- else if eq (toJson (default dict $old.data)) (toJson .data) -}}
{{- index (default dict $old.metadata.annotations) "rookery.io/revision" | default "1" -}}
{{- else -}}
{{- .root.Release.Revision -}}
{{- end -}}
{{- end -}}

{{/* Of all of them, or of one. Arguments: root, and optionally only (its name). */}}
{{- define "rookery.secretRevisions" -}}
{{- $found := list -}}
{{- range $name, $data := include "rookery.secrets" .root | fromJson -}}
{{- if has $.only (list nil $name) -}}
{{- $found = append $found (include "rookery.secretRevision" (dict "root" $.root "name" $name "data" $data)) -}}
{{- end -}}
{{- end -}}
{{- join "." $found -}}
{{- end -}}

{{/* One of them as an object. Arguments: root, name. */}}
{{- define "rookery.secret" -}}
{{- $data := index (include "rookery.secrets" .root | fromJson) .name -}}
{{- $revision := include "rookery.secretRevision" (dict "root" .root "name" .name "data" $data) -}}
apiVersion: v1
kind: Secret
metadata:
  name: {{ .name }}
  namespace: {{ .root.Release.Namespace | quote }}
  labels:
    {{- include "rookery.labels" .root | nindent 4 }}
  {{- include "rookery.annotated" (dict "root" .root "more" (dict "rookery.io/revision" $revision)) | nindent 2 }}
type: Opaque
data:
  {{- toYaml $data | nindent 2 }}
{{- end -}}
