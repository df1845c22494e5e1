{{/* A port of the own machine for one of a Service: those below 1024 are for root. */}}
{{- define "rookery.notes.local" -}}
{{- ternary (add . 10000) . (lt (int .) 1024) -}}
{{- end -}}

{{/* A template of its own, for tests. */}}
{{- define "rookery.notes" -}}
{{- $fullname := include "rookery.fullname" . }}
{{- $http := include "rookery.httpServiceName" . }}
{{- $port := int (default .Values.listeners.http.port .Values.service.ports.http) }}
{{- $plan := include "rookery.test" . | fromJson }}
{{- $space := printf "--namespace %s" .Release.Namespace }}
rookery {{ .Chart.AppVersion }} is being started as {{ $fullname }} in the namespace {{ .Release.Namespace }}.
{{ if .Values.migration.enabled }}
No nodes run: the store is moved to the layout of this version. Wait for the Job, then start the nodes:

   kubectl {{ $space }} wait --for=condition=complete --timeout=1h job/{{ $fullname }}-migration-{{ .Release.Revision }}
   helm upgrade {{ .Release.Name }} CHART {{ $space }} --reset-then-reuse-values --set migration.enabled=false
{{- else }}
1. Wait until its nodes are ready, then let a client publish and get what it published:

   kubectl {{ $space }} rollout status deployment/{{ $fullname }}
{{- if .Values.test.enabled }}
   helm test {{ .Release.Name }} {{ $space }}
{{- end }}

{{- $local := include "rookery.notes.local" $port }}

2. The dashboard is at http://127.0.0.1:{{ $local }} with

   kubectl {{ $space }} port-forward service/{{ $http }} {{ $local }}:{{ $port }}

   Its login, which is also the API key `admin:SECRET`, is admin with the secret
{{ if .Values.auth.admin.existingSecret }}
   kubectl {{ $space }} get secret {{ .Values.auth.admin.existingSecret }} -o go-template='{{ printf "{{index .data %q | base64decode}}" .Values.auth.admin.key }}'
{{- else }}
   kubectl {{ $space }} get secret {{ $fullname }} -o go-template='{{ `{{index .data "admin-secret" | base64decode}}` }}'
{{- end }}
{{- if eq $plan.who "made" }}

3. Nobody may connect before there are users. Make one (it asks for the password):

   kubectl {{ $space }} exec -it deploy/{{ $fullname }} -c rookery -- rookery ctl api users put USER --password -
{{- end }}
{{- $listener := $plan.listener }}
{{- range (include "rookery.listeners" . | fromJson).items }}
{{- if and .service (not $listener) }}{{- $listener = . }}{{- end }}
{{- end }}
{{- with $listener }}
{{- $clients := int (default .port (index $.Values.service.ports .name)) }}
{{- $scheme := get (dict "tcp" "mqtt" "tls" "mqtts" "ws" "ws" "wss" "wss") .scheme }}

{{ ternary 4 3 (eq $plan.who "made") }}. Clients of the cluster connect to {{ $scheme }}://{{ $fullname }}.{{ $.Release.Namespace }}.svc:{{ $clients }}{{ .path }}.
{{- if eq $.Values.service.type "LoadBalancer" }} Others find it at
   the port {{ $clients }} of the address (EXTERNAL-IP) that the load balancer has after a while:

   kubectl {{ $space }} get service {{ $fullname }}
{{- else if eq $.Values.service.type "NodePort" }} Others find it at
   any machine of the cluster, at the port that stands behind {{ $clients }}: among PORT(S):

   kubectl {{ $space }} get service {{ $fullname }}
{{- end }}
{{- if not (has (toString .options.proxy_protocol) (list "on" "true")) }}
{{- $local := include "rookery.notes.local" $clients }}
{{- if eq $.Values.service.type "ClusterIP" }} From here:
{{- else }}

   Without it, from here:
{{- end }}

   kubectl {{ $space }} port-forward service/{{ $fullname }} {{ $local }}:{{ $clients }}
{{- if has .scheme (list "tcp" "tls") }}
   mosquitto_pub -h 127.0.0.1 -p {{ $local }}{{ if ne $plan.who "anonymous" }} -u USER -P PASSWORD{{ end }}
{{- if eq .scheme "tls" }} --cafile ca.crt --insecure{{ if eq $.Values.tls.clientCertificates "required" }} --cert client.crt --key client.key{{ end }}{{ end }} -t greeting -m hello
{{- else }}

   and {{ $scheme }}://127.0.0.1:{{ $local }}{{ .path }} is the URL.
{{- end }}
{{- if has .scheme (list "tls" "wss") }}

   (ca.crt: who signed the certificate in the Secret {{ include "rookery.tlsSecretName" $ }}. 127.0.0.1 is none of its names.)
{{- end }}
{{- end }}
{{- end }}
{{- if .Values.auth.allowAnonymous }}

WARNING: clients need no credentials (auth.allowAnonymous): whoever reaches the Service reads and writes all topics.
{{- end }}
{{- if .Values.redis.enabled }}

WARNING: the Valkey of this release is one pod, for trying out: while it restarts, clients wait.
{{- if not .Values.redis.persistence.enabled }} It keeps nothing when its pod ends.{{ end }} Use externalRedis in production.
{{- end }}
{{- if and (ne .Values.service.type "ClusterIP") (not .Values.service.split) }}

WARNING: the Service of the type {{ .Values.service.type }} has the port of API and dashboard, too: service.split keeps it inside.
{{- end }}
{{- if and .Values.service.split (ne .Values.service.http.type "ClusterIP") }}

WARNING: API and dashboard are outside, without TLS, by the Service {{ $http }} of the type {{ .Values.service.http.type }} (service.http.type).
{{- end }}
{{- end }}
{{- end -}}
