{{/* From values to settings of the broker. */}}

{{/* A value as TOML, on one line: its strings and numbers are those of JSON (toToml writes 1000000 as 1e+06). Text may have
templates. Arguments: root, value. */}}
{{- define "rookery.toml" -}}
{{- $root := .root -}}
{{- if kindIs "map" .value -}}
{{- $parts := list -}}
{{- range $key, $each := .value -}}
{{- if not (kindIs "invalid" $each) -}}
{{- $parts = append $parts (printf "%s = %s" (toRawJson $key) (include "rookery.toml" (dict "root" $root "value" $each))) -}}
{{- end -}}
{{- end -}}
{ {{- join ", " $parts -}} }
{{- else if kindIs "slice" .value -}}
{{- $parts := list -}}
{{- range .value -}}
{{- $parts = append $parts (include "rookery.toml" (dict "root" $root "value" .)) -}}
{{- end -}}
[{{- join ", " $parts -}}]
{{- else if kindIs "string" .value -}}
{{- include "rookery.text" . | toRawJson -}}
{{- else -}}
{{- toRawJson .value -}}
{{- end -}}
{{- end -}}

{{/* Text whose templates are carried out. */}}
{{- define "rookery.text" -}}
{{- if contains "{{" .value -}}{{- tpl .value .root -}}{{- else -}}{{- .value -}}{{- end -}}
{{- end -}}

{{/* A setting as a variable of the environment has it: blocks are TYPE?name=value&name=value. Text is taken as it is, as it may
be a password, but for the first `templated` of the blocks. Arguments: root, value, templated. */}}
{{- define "rookery.environment" -}}
{{- $root := .root -}}
{{- if kindIs "slice" .value -}}
{{- $parts := list -}}
{{- $separator := "," -}}
{{- range $number, $_ := .value -}}
{{- $how := dict "root" $root "literal" (ge $number (int $.templated)) -}}
{{- with $_ -}}
{{- if kindIs "map" . -}}
{{- $separator = " " -}}
{{- $query := list -}}
{{- range $key, $each := omit . "type" -}}
{{- if kindIs "slice" $each -}}
{{- $each = join (ternary "\n" "," (eq $key "headers")) $each -}}
{{- end -}}
{{- $query = append $query (printf "%s=%s" $key (urlquery (include "rookery.scalar" (merge (dict "value" $each) $how)))) -}}
{{- end -}}
{{- $parts = append $parts (printf "%s%s%s" .type (ternary "?" "" (gt (len $query) 0)) (join "&" $query)) -}}
{{- else -}}
{{- $parts = append $parts (include "rookery.scalar" (merge (dict "value" .) $how)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- join $separator $parts -}}
{{- else -}}
{{- include "rookery.scalar" (dict "value" .value "literal" true) -}}
{{- end -}}
{{- end -}}

{{- define "rookery.scalar" -}}
{{- if not (kindIs "string" .value) -}}{{- toRawJson .value -}}{{- else if .literal -}}{{- .value -}}{{- else -}}{{- include "rookery.text" . -}}{{- end -}}
{{- end -}}

{{/* -- listeners */}}

{{/* All MQTT listeners, in order: name, scheme, port, path, options, service. */}}
{{- define "rookery.listeners" -}}
{{- $found := list -}}
{{- $schemes := dict "mqtt" "tcp" "mqtts" "tls" "ws" "ws" "wss" "wss" -}}
{{- range $name := list "mqtt" "mqtts" "ws" "wss" -}}
{{- $one := index $.Values.listeners $name -}}
{{- if $one.enabled -}}
{{- $found = append $found (dict "name" $name "scheme" (index $schemes $name) "port" $one.port "path" (default "" $one.path) "options" (default dict $one.options) "service" true) -}}
{{- end -}}
{{- end -}}
{{- range .Values.listeners.extra -}}
{{- $web := has .scheme (list "ws" "wss") -}}
{{- $found = append $found (dict "name" .name "scheme" .scheme "port" .port "path" (ternary (default "/mqtt" .path) "" $web) "options" (default dict .options) "service" (ternary .service true (hasKey . "service"))) -}}
{{- end -}}
{{- $taken := dict (toString (int .Values.listeners.http.port)) "http" -}}
{{- range $found -}}
{{- $port := toString (int .port) -}}
{{- if hasKey $taken $port -}}
{{- fail (printf "listeners: %s and %s have the same port %s" (index $taken $port) .name $port) -}}
{{- end -}}
{{- $_ := set $taken $port .name -}}
{{- end -}}
{{- if not $found -}}
{{- fail "listeners: enable at least one for clients" -}}
{{- end -}}
{{- dict "items" $found | toJson -}}
{{- end -}}

{{/* Whether any listener needs a certificate: "true" or nothing. */}}
{{- define "rookery.tlsWanted" -}}
{{- range (include "rookery.listeners" . | fromJson).items -}}
{{- if has .scheme (list "tls" "wss") -}}true{{- end -}}
{{- end -}}
{{- end -}}

{{/* The tables of `listen`. */}}
{{- define "rookery.listen" -}}
{{- $found := list -}}
{{- range (include "rookery.listeners" . | fromJson).items -}}
{{- $table := dict "url" (printf "%s://%s:%d%s" .scheme $.Values.listeners.address (int .port) .path) "name" .name -}}
{{- range $key, $value := .options -}}
{{- if kindIs "bool" $value -}}
{{- if eq $key "proxy_protocol" -}}{{- $value = ternary "on" "off" $value -}}{{- end -}}
{{- end -}}
{{- $_ := set $table $key $value -}}
{{- end -}}
{{- if has .scheme (list "tls" "wss") -}}
{{- if not (include "rookery.tlsSecretName" $) -}}
{{- fail (printf "listeners: %s needs a certificate; set tls.existingSecret or tls.certManager.enabled" .name) -}}
{{- end -}}
{{- $_ := set $table "certfile" "/etc/rookery/tls/tls.crt" -}}
{{- $_ := set $table "keyfile" "/etc/rookery/tls/tls.key" -}}
{{- if ne $.Values.tls.clientCertificates "none" -}}
{{- $_ := set $table "client_certificates" $.Values.tls.clientCertificates -}}
{{- $_ := set $table "ca_certs" "/etc/rookery/client-ca/ca.crt" -}}
{{- end -}}
{{- end -}}
{{- $found = append $found $table -}}
{{- end -}}
{{- dict "items" $found | toJson -}}
{{- end -}}

{{/* -- store */}}

{{- define "rookery.store" -}}
{{- $given := .Values.externalRedis -}}
{{- if .Values.redis.enabled -}}
{{- if $given.hosts -}}
{{- fail "externalRedis.hosts is set: set redis.enabled to false, or leave it out" -}}
{{- end -}}
redis://{{ include "rookery.redis.fullname" . }}:6379/0
{{- else -}}
{{- if not $given.hosts -}}
{{- fail "there is no store: enable redis (for trying out), or set externalRedis.hosts" -}}
{{- end -}}
{{- $kind := ternary "" (printf "+%s" $given.mode) (eq $given.mode "standalone") -}}
{{- $path := printf "/%d" (int $given.database) -}}
{{- $query := list -}}
{{- if eq $given.mode "sentinel" -}}
{{- $path = printf "/%s" $given.sentinel.primary -}}
{{- if $given.database -}}{{- $query = append $query (printf "db=%d" (int $given.database)) -}}{{- end -}}
{{- else if eq $given.mode "cluster" -}}
{{- if $given.database -}}{{- fail "externalRedis.database: a Redis Cluster has only database 0" -}}{{- end -}}
{{- $path = "" -}}
{{- else if gt (len $given.hosts) 1 -}}
{{- fail "externalRedis.hosts: one server is standalone; several are Sentinels (mode: sentinel) or nodes of a cluster (mode: cluster)" -}}
{{- end -}}
{{- if and $given.tls.enabled $given.tls.existingSecret -}}
{{- if $given.tls.caKey -}}{{- $query = append $query "ssl_ca_certs=/etc/rookery/redis-tls/ca.crt" -}}{{- end -}}
{{- if $given.tls.certKey -}}{{- $query = concat $query (list "ssl_certfile=/etc/rookery/redis-tls/tls.crt" "ssl_keyfile=/etc/rookery/redis-tls/tls.key") -}}{{- end -}}
{{- end -}}
{{ ternary "rediss" "redis" $given.tls.enabled }}{{ $kind }}://{{ join "," $given.hosts }}{{ $path }}{{ ternary "?" "" (gt (len $query) 0) }}{{ join "&" $query }}
{{- end -}}
{{- end -}}

{{/* -- who may do what */}}

{{/* The blocks of `authentication` and `authorization`: those of the chart, of config, and of secretConfig; and how many of
them are not from secretConfig (`templated`). */}}
{{- define "rookery.access" -}}
{{- $authentication := list -}}
{{- $authorization := list -}}
{{- $auth := .Values.auth -}}
{{- if or $auth.users (and $auth.existingSecret $auth.usersKey) -}}
{{- $authentication = append $authentication (dict "type" "password_file" "path" "/etc/rookery/auth/users") -}}
{{- end -}}
{{- if $auth.store -}}{{- $authentication = append $authentication (dict "type" "store") -}}{{- end -}}
{{- if or $auth.acl (and $auth.existingSecret $auth.aclKey) -}}
{{- $authorization = append $authorization (dict "type" "acl_file" "path" "/etc/rookery/auth/acl") -}}
{{- end -}}
{{- if $auth.storeRules -}}{{- $authorization = append $authorization (dict "type" "store") -}}{{- end -}}
{{- $authentication = concat $authentication (default list .Values.config.authentication) -}}
{{- $authorization = concat $authorization (default list .Values.config.authorization) -}}
{{- $templated := dict "authentication" (len $authentication) "authorization" (len $authorization) -}}
{{- $authentication = concat $authentication (default list .Values.secretConfig.authentication) -}}
{{- $authorization = concat $authorization (default list .Values.secretConfig.authorization) -}}
{{- dict "authentication" $authentication "authorization" $authorization "templated" $templated | toJson -}}
{{- end -}}

{{/* -- stopping */}}

{{/* Clients sent away per second; refuses a pace at which not all are gone in time. */}}
{{- define "rookery.drainRate" -}}
{{- $connections := int64 .Values.maxConnections -}}
{{- $timeout := int64 .Values.drain.timeoutSeconds -}}
{{- $needed := div (add $connections (sub $timeout 1)) $timeout -}}
{{- if .Values.drain.rate -}}
{{- $rate := int64 .Values.drain.rate -}}
{{- if and .Values.drain.enabled (lt $rate $needed) -}}
{{- fail (printf "drain: %d clients a second for %d s empty %d connections, and maxConnections is %d; set drain.rate to %d, or drain.timeoutSeconds to %d, or maxConnections to %d" $rate $timeout (mul $rate $timeout) $connections $needed (div (add $connections (sub $rate 1)) $rate) (mul $rate $timeout)) -}}
{{- end -}}
{{- $rate -}}
{{- else if and .Values.drain.enabled (gt $needed 1000000) -}}
{{- fail (printf "drain: %d connections in %d s are %d a second, and a node sends away 1000000 at most; set drain.timeoutSeconds or maxConnections" $connections $timeout $needed) -}}
{{- else -}}
{{- max 100 $needed | min 1000000 -}}
{{- end -}}
{{- end -}}

{{- define "rookery.gracePeriod" -}}
{{- $drain := .Values.drain -}}
{{- $needed := ternary (add (int64 $drain.delaySeconds) (int64 $drain.timeoutSeconds) (int64 $drain.marginSeconds)) (int64 $drain.marginSeconds) $drain.enabled -}}
{{- $given := int64 (default $needed .Values.terminationGracePeriodSeconds) -}}
{{- if lt $given $needed -}}
{{- fail (printf "terminationGracePeriodSeconds is %d; drain needs %d (delaySeconds, timeoutSeconds and marginSeconds)" $given $needed) -}}
{{- end -}}
{{- $given -}}
{{- end -}}

{{/* -- all of it */}}

{{/* The settings of the configuration file, as JSON. */}}
{{- define "rookery.settings" -}}
{{- range $key, $_ := .Values.secretConfig -}}
{{- if and (hasKey $.Values.config $key) (not (has $key (list "authentication" "authorization"))) -}}
{{- fail (printf "%s is set in config and in secretConfig" $key) -}}
{{- end -}}
{{- end -}}
{{- $access := include "rookery.access" . | fromJson -}}
{{- $secret := .Values.secretConfig -}}
{{- if not (or $access.authentication .Values.auth.allowAnonymous .Values.existingSecretConfig .Values.config.hooks $secret.hooks) -}}
{{- fail "nobody is asked who clients are: set auth.store, auth.users or config.authentication, or auth.allowAnonymous if that is meant" -}}
{{- end -}}
{{/* Pods are started in any order. */}}
{{- $settings := dict "namespace" (include "rookery.namespace" .) "store_wait" "5m" -}}
{{- $settings = merge (omit .Values.config "authentication" "authorization") $settings -}}
{{- range $key := list "authentication" "authorization" -}}
{{- if and (index $access $key) (not (hasKey $secret $key)) -}}{{- $_ := set $settings $key (index $access $key) -}}{{- end -}}
{{- end -}}
{{- $drain := .Values.drain -}}
{{- $own := dict
  "http" (printf "%s:%d" .Values.listeners.address (int .Values.listeners.http.port))
  "allow_anonymous" .Values.auth.allowAnonymous
  "max_connections" (int64 .Values.maxConnections)
  "drain_delay" (ternary (int64 $drain.delaySeconds) 0 $drain.enabled)
  "drain_timeout" (ternary (int64 $drain.timeoutSeconds) 0 $drain.enabled)
  "drain_rate" (include "rookery.drainRate" . | atoi)
  "store" (include "rookery.store" .)
-}}
{{- if $drain.serverReference -}}{{- $_ := set $own "server_reference" $drain.serverReference -}}{{- end -}}
{{- if not .Values.redis.enabled -}}
{{- if .Values.externalRedis.username -}}{{- $_ := set $own "store_username" .Values.externalRedis.username -}}{{- end -}}
{{- if and (eq .Values.externalRedis.mode "sentinel") .Values.externalRedis.sentinel.username -}}
{{- $_ := set $own "sentinel_username" .Values.externalRedis.sentinel.username -}}
{{- end -}}
{{- end -}}
{{- merge $own $settings | toJson -}}
{{- end -}}

{{/* rookery.toml */}}
{{- define "rookery.configuration" -}}
{{- range $key, $value := include "rookery.settings" . | fromJson -}}
{{- if not (kindIs "invalid" $value) }}
{{ $key }} = {{ include "rookery.toml" (dict "root" $ "value" $value) }}
{{- end -}}
{{- end }}
{{- range (include "rookery.listen" . | fromJson).items }}

[[listen]]
{{- range $key, $value := . }}
{{ $key }} = {{ include "rookery.toml" (dict "root" $ "value" $value) }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Variables that come from secretConfig, as JSON. */}}
{{- define "rookery.secretSettings" -}}
{{- $access := include "rookery.access" . | fromJson -}}
{{- $found := dict -}}
{{- range $key, $value := .Values.secretConfig -}}
{{- if has $key (list "authentication" "authorization") -}}{{- $value = index $access $key -}}{{- end -}}
{{- if not (kindIs "invalid" $value) -}}
{{- $_ := set $found (printf "ROOKERY_%s" (upper $key)) (include "rookery.environment" (dict "root" $ "value" $value "templated" (index $access.templated $key))) -}}
{{- end -}}
{{- end -}}
{{- toJson $found -}}
{{- end -}}
