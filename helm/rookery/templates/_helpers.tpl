{{/* Names, labels and images. */}}

{{- define "rookery.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 40 characters: suffixes and the ends of pod names follow, and a node's name has at most 64. */}}
{{- define "rookery.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "rookery.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
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
app.kubernetes.io/name: {{ include "rookery.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "rookery.labels" -}}
{{ include "rookery.instanceLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: rookery
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
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
