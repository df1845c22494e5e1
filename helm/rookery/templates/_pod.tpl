{{/* What pods are given. */}}

{{/* Labels of pods: without versions, which would replace pods that are as before. Arguments: root, component, more. */}}
{{- define "rookery.podLabels" -}}
{{- $own := include "rookery.instanceLabels" .root | fromYaml -}}
{{- $_ := set $own "app.kubernetes.io/component" .component -}}
{{- $_ := set $own "app.kubernetes.io/part-of" "rookery" -}}
{{- merge $own .more .root.Values.commonLabels | toYaml -}}
{{- end -}}

{{/* The number of nodes; none while the store is migrated. With autoscaling it is the one that there is: a manifest that says
nothing would mean one, and the others would be drained. Nothing if that cannot be seen: before the first installation, and
without the cluster. */}}
{{- define "rookery.replicas" -}}
{{- if .Values.migration.enabled -}}0
{{- else if or (default dict .Values.autoscaling).enabled (default dict .Values.keda).enabled -}}
{{- with lookup "apps/v1" "Deployment" .Release.Namespace (include "rookery.fullname" .) -}}
{{- /* At 0 an autoscaler does nothing. */ -}}
{{- int64 .spec.replicas | default (include "rookery.around.fewest" $ | atoi) -}}
{{- end -}}
{{- else -}}
{{- int64 .Values.replicaCount -}}
{{- end -}}
{{- end -}}

{{/* A probe: its default asks by HTTP, and it may ask in one way only. */}}
{{- define "rookery.probe" -}}
{{- ternary (omit . "httpGet") . (or (hasKey . "tcpSocket") (hasKey . "exec") (hasKey . "grpc")) | toYaml -}}
{{- end -}}

{{/* Where a container of the node finds its HTTP server. */}}
{{- define "rookery.localUrl" -}}
{{- printf "http://%s:%d" (ternary "[::1]" "127.0.0.1" (contains ":" .Values.listeners.address)) (int .Values.listeners.http.port) -}}
{{- end -}}

{{/* The Secret with the files of users and rules; empty: there are none. */}}
{{- define "rookery.authSecretName" -}}
{{- if .Values.auth.existingSecret -}}
{{- range list "users" "acl" -}}
{{- if index $.Values.auth . -}}
{{- fail (printf "auth.%s: auth.existingSecret is set, and takes the place of both texts: put it there (keys auth.usersKey, auth.aclKey), or leave auth.existingSecret out" .) -}}
{{- end -}}
{{- end -}}
{{- .Values.auth.existingSecret -}}
{{- else if or .Values.auth.users .Values.auth.acl -}}
{{- include "rookery.fullname" . }}-auth
{{- end -}}
{{- end -}}

{{/* Name and key of the Secret with the password of the built-in Valkey. */}}
{{- define "rookery.redis.password" -}}
name: {{ default (include "rookery.redis.fullname" .) .Values.redis.auth.existingSecret }}
key: {{ ternary .Values.redis.auth.key "redis-password" (ne .Values.redis.auth.existingSecret "") }}
{{- end -}}

{{/* "true" if there are PEM files for the connections to Redis. */}}
{{- define "rookery.redis.tlsFiles" -}}
{{- if and (not .Values.redis.enabled) .Values.externalRedis.tls.enabled .Values.externalRedis.tls.existingSecret -}}true{{- end -}}
{{- end -}}

{{/* How `helm test` asks: the listener for it (nothing where none takes plain clients), and who the client is (anonymous, user,
made). As JSON. */}}
{{- define "rookery.test" -}}
{{- $listener := dict -}}
{{- range (include "rookery.listeners" . | fromJson).items -}}
{{- $open := and .service (ne (toString .options.proxy_protocol) "on") (ne (toString .options.proxy_protocol) "true") (not .options.authentication) -}}
{{- $plain := or (eq .scheme "tcp") (and (eq .scheme "tls") (ne $.Values.tls.clientCertificates "required")) -}}
{{- if and $open $plain (not $listener) -}}{{- $listener = . -}}{{- end -}}
{{- end -}}
{{- $stored := false -}}
{{- $access := include "rookery.access" . | fromJson -}}
{{- range $access.authentication -}}{{- if eq .type "store" -}}{{- $stored = true -}}{{- end -}}{{- end -}}
{{- $who := "" -}}
{{- if .Values.test.username -}}{{- $who = "user" -}}
{{- else if and .Values.auth.allowAnonymous (or .Values.test.topic (not $access.authorization)) -}}{{- $who = "anonymous" -}}
{{- else if $stored -}}{{- $who = "made" -}}{{- /* a superuser: rules do not count */ -}}
{{- end -}}
{{- dict "listener" $listener "who" $who | toJson -}}
{{- end -}}
