{{/* What a schema cannot tell, and an API server or a node would find only later. */}}

{{- define "rookery.checks" -}}
{{- include "rookery.check.ports" . -}}
{{- include "rookery.check.proxies" . -}}
{{- include "rookery.check.redis" . -}}
{{- end -}}

{{/* Ports of Services are of listeners, and of one each. */}}
{{- define "rookery.check.ports" -}}
{{- $service := .Values.service -}}
{{- $names := list "mqtt" "mqtts" "ws" "wss" "http" -}}
{{- range .Values.listeners.extra -}}
{{- if has .name $names -}}{{- fail (printf "listeners.extra: there is another listener %s" .name) -}}{{- end -}}
{{- $names = append $names .name -}}
{{- end -}}
{{- range $key := list "ports" "nodePorts" -}}
{{- range $name, $_ := index $service $key -}}
{{- if not (has $name $names) -}}
{{- fail (printf "service.%s: there is no listener %s, only %s" $key $name (join ", " $names)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $taken := dict -}}
{{- $listeners := (include "rookery.listeners" . | fromJson).items -}}
{{- if not $service.split -}}
{{- $listeners = append $listeners (dict "name" "http" "port" .Values.listeners.http.port "service" true) -}}
{{- end -}}
{{- range $listeners -}}
{{- if .service -}}
{{- $port := default .port (index $service.ports .name) | int | toString -}}
{{- if hasKey $taken $port -}}
{{- fail (printf "service.ports: %s and %s have the same port %s of the Service" (index $taken $port) .name $port) -}}
{{- end -}}
{{- $_ := set $taken $port .name -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Whoever expects a header has to know whom to believe. */}}
{{- define "rookery.check.proxies" -}}
{{- range (include "rookery.listeners" . | fromJson).items -}}
{{- if and (has (toString .options.proxy_protocol) (list "on" "true")) (not .options.trusted_proxies) -}}
{{- fail (printf "listeners: %s has proxy_protocol, and its trusted_proxies do not say whose headers are believed" .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "rookery.check.redis" -}}
{{- range .Values.externalRedis.hosts -}}
{{- $port := last (splitList ":" .) | int -}}
{{- if or (lt $port 1) (gt $port 65535) -}}{{- fail (printf "externalRedis.hosts: there is no port like that of %s" .) -}}{{- end -}}
{{- end -}}
{{- if .Values.redis.enabled -}}
{{- $limit := (default dict (default dict .Values.redis.resources).limits).memory | default "" -}}
{{- $most := include "rookery.bytes" (toString $limit) | int64 -}}
{{- $data := include "rookery.bytes" .Values.redis.maxmemory | int64 -}}
{{- if and $most (lt $most (mul 2 $data)) -}}
{{- fail (printf "redis.maxmemory: %s of data may need twice that while the file is written anew, and redis.resources.limits.memory is %v" .Values.redis.maxmemory $limit) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* A size of Kubernetes or of Redis (384mb) as a number; 0 where it is none. */}}
{{- define "rookery.bytes" -}}
{{- $powers := dict "" 0 "k" 1 "m" 2 "g" 3 "t" 4 -}}
{{- if regexMatch `^[0-9.]+ *([kKMGT]i?|[kmg]b)?$` . -}}
{{- $number := regexFind `^[0-9.]+` . | float64 -}}
{{- $unit := regexFind `[a-zA-Z].*` . -}}
{{- $base := ternary 1000 1024 (regexMatch `^[kKMGT]$` $unit) -}}
{{- range until (index $powers (lower (trunc 1 $unit))) -}}{{- $number = mulf $number $base -}}{{- end -}}
{{- $number | int64 -}}
{{- else -}}
0
{{- end -}}
{{- end -}}
