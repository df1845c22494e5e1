{{/*
What the templates beside the workload share. Each takes the root context, or a dict with it as "root".
*/}}

{{/*
Name, namespace, labels and annotations of an object: root, name, and optionally namespace, labels, annotations, which
come over the common ones. Elsewhere than in the release's namespace, that one is part of the name.
*/}}
{{- define "rookery.around.metadata" -}}
{{- $home := .root.Release.Namespace -}}
{{- $namespace := .namespace | default $home -}}
name: {{ ternary .name (include "rookery.cut" (dict "text" (printf "%s-%s" $home .name) "most" 52)) (eq $namespace $home) | quote }}
namespace: {{ $namespace | quote }}
labels:
  {{- include "rookery.labelled" (dict "root" .root "more" .labels) | nindent 2 }}
{{- with merge (dict) (.annotations | default dict) (include "rookery.annotations" .root | fromYaml) }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* The label `job` of all series of this release. */}}
{{- define "rookery.around.job" -}}
{{- .Values.metrics.job | default (printf "%s/%s" .Release.Namespace (include "rookery.fullname" .)) }}
{{- end }}

{{/* Connections per node at which there should be more nodes: root, given. */}}
{{- define "rookery.around.connections" -}}
{{- if .given }}{{ int64 .given }}{{ else }}{{ max 1 (div (mul 7 (int64 .root.Values.maxConnections)) 10) }}{{ end }}
{{- end }}

{{/* The fewest nodes that there are by intention. */}}
{{- define "rookery.around.fewest" -}}
{{- if (default dict .Values.autoscaling).enabled }}{{ int .Values.autoscaling.minReplicas }}
{{- else if (default dict .Values.keda).enabled }}{{ int .Values.keda.minReplicas }}
{{- else }}{{ int .Values.replicaCount }}
{{- end }}
{{- end }}

{{/* The port of a Service for a listener: root, listener. */}}
{{- define "rookery.around.servicePort" -}}
{{- int (get .root.Values.service.ports .listener | default (get .root.Values.listeners .listener).port) }}
{{- end }}

{{/* Fails unless that listener is on: root, listener, for. */}}
{{- define "rookery.around.needs" -}}
{{- if not (get .root.Values.listeners .listener).enabled }}
{{- fail (printf "%s needs listeners.%s.enabled" .for .listener) }}
{{- end }}
{{- end }}

{{/* The endpoint of a ServiceMonitor or PodMonitor: root, monitor. */}}
{{- define "rookery.around.endpoint" -}}
- port: http
  path: /metrics
  interval: {{ .monitor.interval }}
  {{- with .monitor.scrapeTimeout }}
  scrapeTimeout: {{ . }}
  {{- end }}
  {{- with .monitor.credentials }}
  authorization:
    type: Bearer
    credentials:
      {{- toYaml . | nindent 6 }}
  {{- end }}
  relabelings:
    # Alerts and scaling are about one release.
    - targetLabel: job
      replacement: {{ include "rookery.around.job" .root | quote }}
    {{- with .monitor.relabelings }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with .monitor.metricRelabelings }}
  metricRelabelings:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end }}

{{/* An Ingress: root, name, ingress, service, port, path. */}}
{{- define "rookery.around.ingress" -}}
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  {{- include "rookery.around.metadata" (dict "root" .root "name" .name "labels" .ingress.labels "annotations" .ingress.annotations) | nindent 2 }}
spec:
  {{- with .ingress.className }}
  ingressClassName: {{ . | quote }}
  {{- end }}
  {{- with .ingress.tls }}
  tls:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  rules:
    {{- range (.ingress.hosts | default (list "")) }}
    - http:
        paths:
          - path: {{ $.path | quote }}
            pathType: {{ $.ingress.pathType }}
            backend:
              service:
                name: {{ $.service }}
                port:
                  name: {{ $.port | quote }}
      {{- with . }}
      host: {{ . | quote }}
      {{- end }}
    {{- end }}
{{- end }}

{{/* A route of the Gateway API: root, name, kind, apiVersion, route, hostnames, path, service, port. */}}
{{- define "rookery.around.route" -}}
{{- if not .route.parentRefs }}
{{- fail (printf "gateway.%s.parentRefs: which Gateway is it?" .listener) }}
{{- end }}
apiVersion: {{ .apiVersion }}
kind: {{ .kind }}
metadata:
  {{- include "rookery.around.metadata" (dict "root" .root "name" .name "labels" .root.Values.gateway.labels "annotations" .root.Values.gateway.annotations) | nindent 2 }}
spec:
  parentRefs:
    {{- toYaml .route.parentRefs | nindent 4 }}
  {{- with .route.hostnames }}
  hostnames:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  rules:
    - backendRefs:
        - name: {{ .service }}
          port: {{ .port }}
      {{- with .path }}
      matches:
        - path:
            type: PathPrefix
            value: {{ . | quote }}
      {{- end }}
{{- end }}

{{/* The first of `versions` in which the cluster has the kind, or the last one: root, kind, versions, given. */}}
{{- define "rookery.around.gatewayVersion" -}}
{{- $found := .given }}
{{- range .versions }}
{{- if and (not $found) ($.root.Capabilities.APIVersions.Has (printf "gateway.networking.k8s.io/%s/%s" . $.kind)) }}
{{- $found = . }}
{{- end }}
{{- end }}
{{- printf "gateway.networking.k8s.io/%s" ($found | default (last .versions)) }}
{{- end }}

{{/* The pod of `helm test` as a peer of a NetworkPolicy. */}}
{{- define "rookery.around.testPeer" -}}
{{- if .Values.test.enabled }}
- podSelector:
    matchLabels:
      {{- include "rookery.instanceLabels" . | nindent 6 }}
      app.kubernetes.io/component: test
{{- end }}
{{- end }}

{{/* Whose business the store is, as a selector: nodes, and the Job that migrates it. */}}
{{- define "rookery.around.storeUsers" -}}
{{- if .Values.migration.enabled -}}
matchLabels:
  {{- include "rookery.instanceLabels" . | nindent 2 }}
matchExpressions:
  - key: app.kubernetes.io/component
    operator: In
    values: [node, migration]
{{- else -}}
matchLabels:
  {{- include "rookery.selectorLabels" . | nindent 2 }}
{{- end -}}
{{- end }}
