{{/* Names, labels and images. */}}

{{/* A text of at most so many characters. Where some are cut off, a hash of all of them tells it from others that begin like
it. Arguments: text, most. */}}
{{- define "rookery.cut" -}}
{{- if gt (len .text) (int .most) -}}
{{- printf "%s-%s" (.text | trunc (int (sub .most 9)) | trimSuffix "-") (sha256sum .text | trunc 8) -}}
{{- else -}}
{{- .text -}}
{{- end -}}
{{- end -}}

{{- define "rookery.name" -}}
{{- include "rookery.cut" (dict "text" (default .Chart.Name .Values.nameOverride) "most" 40) -}}
{{- end -}}

{{/* At most 40 characters: suffixes and the ends of pod names follow, and a node's name has at most 64. */}}
{{- define "rookery.fullname" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- $full := printf "%s-%s" .Release.Name $name -}}
{{- if contains $name .Release.Name -}}{{- $full = .Release.Name -}}{{- end -}}
{{- if .Values.fullnameOverride -}}{{- $full = .Values.fullnameOverride -}}{{- end -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $full) -}}
{{- fail (printf "%s: names of Services have lower-case letters, digits and '-', and begin with a letter; set fullnameOverride" $full) -}}
{{- else if has $full (list "true" "false" "null" "yes" "no" "on" "off" "y" "n") -}}
{{- fail (printf "%s is a word of YAML; set fullnameOverride" $full) -}}
{{- end -}}
{{- include "rookery.cut" (dict "text" $full "most" 40) -}}
{{- end -}}

{{/* What tells it from releases of the same name elsewhere. A '.' is in no name of either. */}}
{{- define "rookery.namespace" -}}
{{- include "rookery.cut" (dict "text" (printf "%s.%s" .Release.Namespace (include "rookery.fullname" .)) "most" 64) -}}
{{- end -}}

{{- define "rookery.redis.fullname" -}}
{{- include "rookery.fullname" . }}-redis
{{- end -}}

{{/* The Service that has the port `http`. */}}
{{- define "rookery.httpServiceName" -}}
{{- include "rookery.fullname" . }}{{ if .Values.service.split }}-http{{ end }}
{{- end -}}

{{- define "rookery.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "rookery.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* What says which release an object is of; a component follows where it is about pods. */}}
{{- define "rookery.instanceLabels" -}}
app.kubernetes.io/name: {{ include "rookery.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "rookery.labels" -}}
{{- include "rookery.labelled" (dict "root" .) -}}
{{- end -}}

{{/* Labels of an object: the chart's own ones first, then .more, then the common ones. Arguments: root, and optionally own
(further ones of the chart), more. */}}
{{- define "rookery.labelled" -}}
{{- $own := include "rookery.instanceLabels" .root | fromYaml -}}
{{- $_ := set $own "app.kubernetes.io/version" .root.Chart.AppVersion -}}
{{- $_ := set $own "app.kubernetes.io/managed-by" .root.Release.Service -}}
{{- $_ := set $own "app.kubernetes.io/part-of" "rookery" -}}
{{- $_ := set $own "helm.sh/chart" (printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-") -}}
{{- merge $own (default dict .own) (default dict .more) (default dict .root.Values.commonLabels) | toYaml -}}
{{- end -}}

{{/* Of the pods of the nodes. */}}
{{- define "rookery.selectorLabels" -}}
{{ include "rookery.instanceLabels" . }}
app.kubernetes.io/component: node
{{- end -}}

{{- define "rookery.redis.selectorLabels" -}}
{{ include "rookery.instanceLabels" . }}
app.kubernetes.io/component: redis
{{- end -}}

{{- define "rookery.annotations" -}}
{{- with .Values.commonAnnotations }}{{ toYaml . }}{{ end -}}
{{- end -}}

{{/* `annotations:` with the common ones and those of .more, or nothing. Arguments: root, more. */}}
{{- define "rookery.annotated" -}}
{{- with merge (dict) (default dict .more) .root.Values.commonAnnotations -}}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end -}}
{{- end -}}

{{/* Argument: an `image` of the values, and the tag where it has none. */}}
{{- define "rookery.imageOf" -}}
{{- $name := ternary (printf "%s/%s" .image.registry .image.repository) .image.repository (ne .image.registry "") -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $name .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default .tag .image.tag) -}}
{{- end -}}
{{- end -}}

{{- define "rookery.image" -}}
{{- include "rookery.imageOf" (dict "image" .Values.image "tag" .Chart.AppVersion) -}}
{{- end -}}

{{/* The Secret with the certificate of the listeners: yours, or the one that cert-manager fills. */}}
{{- define "rookery.tlsSecretName" -}}
{{- if .Values.tls.existingSecret -}}
{{- .Values.tls.existingSecret -}}
{{- else if (default dict .Values.tls.certManager).enabled -}}
{{- include "rookery.fullname" . }}-tls
{{- end -}}
{{- end -}}

{{/* What a Secret of this release has under a key, given or as it was, or something random: base64. Arguments: root, name,
key, given. */}}
{{- define "rookery.kept" -}}
{{- $old := lookup "v1" "Secret" .root.Release.Namespace .name -}}
{{- if .given -}}
{{- .given | b64enc -}}
{{- else if and $old (hasKey (default dict $old.data) .key) -}}
{{- index $old.data .key -}}
{{- else -}}
{{- randAlphaNum 32 | b64enc -}}
{{- end -}}
{{- end -}}
