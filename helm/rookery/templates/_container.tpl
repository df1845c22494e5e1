{{/* What a container needs to work with the configuration of a node: environment, mounts, and the volumes of its pod. */}}

{{- define "rookery.node.environment" -}}
{{- $fullname := include "rookery.fullname" . -}}
{{- $external := .Values.externalRedis -}}
{{- $auth := .Values.auth -}}
env:
  - name: ROOKERY_NODE_NAME
    valueFrom:
      fieldRef:
        fieldPath: metadata.name
  # Of all commands that run in this container, too.
  - name: ROOKERY_CONFIG
    value: /etc/rookery/rookery.toml
  - name: ROOKERY_ADMIN_SECRET
    valueFrom:
      secretKeyRef:
        name: {{ default $fullname $auth.admin.existingSecret }}
        key: {{ ternary $auth.admin.key "admin-secret" (ne $auth.admin.existingSecret "") }}
  # For `rookery ctl` in this container, which drains the node before it stops.
  - name: ROOKERY_API_KEY
    value: admin:$(ROOKERY_ADMIN_SECRET)
  - name: ROOKERY_API_URL
    value: {{ include "rookery.localUrl" . }}
  {{- if .Values.redis.enabled }}
  - name: ROOKERY_STORE_PASSWORD
    valueFrom:
      secretKeyRef:
        {{- include "rookery.redis.password" . | nindent 8 }}
  {{- else }}
  {{- if or $external.password (and $external.existingSecret $external.passwordKey) }}
  - name: ROOKERY_STORE_PASSWORD
    valueFrom:
      secretKeyRef:
        name: {{ default $fullname $external.existingSecret }}
        key: {{ ternary $external.passwordKey "redis-password" (ne $external.existingSecret "") }}
  {{- end }}
  {{- if and (eq $external.mode "sentinel") (or $external.sentinel.password (and $external.existingSecret $external.sentinel.passwordKey)) }}
  - name: ROOKERY_SENTINEL_PASSWORD
    valueFrom:
      secretKeyRef:
        name: {{ default $fullname $external.existingSecret }}
        key: {{ ternary $external.sentinel.passwordKey "sentinel-password" (ne $external.existingSecret "") }}
  {{- end }}
  {{- end }}
  {{- with .Values.extraEnv }}
  {{- tpl (toYaml .) $ | nindent 2 }}
  {{- end }}
{{- if or .Values.secretConfig .Values.existingSecretConfig .Values.extraEnvFrom }}
envFrom:
  {{- if .Values.secretConfig }}
  - secretRef:
      name: {{ $fullname }}-settings
  {{- end }}
  {{- with .Values.existingSecretConfig }}
  - secretRef:
      name: {{ . }}
  {{- end }}
  {{- with .Values.extraEnvFrom }}
  {{- tpl (toYaml .) $ | nindent 2 }}
  {{- end }}
{{- end }}
{{- end -}}

{{- define "rookery.node.mounts" -}}
volumeMounts:
  - name: config
    mountPath: /etc/rookery/rookery.toml
    subPath: rookery.toml
    readOnly: true
  - name: tmp
    mountPath: /tmp
  {{- if include "rookery.authSecretName" . }}
  - name: auth
    mountPath: /etc/rookery/auth
    readOnly: true
  {{- end }}
  {{- if include "rookery.tlsWanted" . }}
  - name: tls
    mountPath: /etc/rookery/tls
    readOnly: true
  {{- if ne .Values.tls.clientCertificates "none" }}
  - name: client-ca
    mountPath: /etc/rookery/client-ca
    readOnly: true
  {{- end }}
  {{- end }}
  {{- if include "rookery.redis.tlsFiles" . }}
  - name: redis-tls
    mountPath: /etc/rookery/redis-tls
    readOnly: true
  {{- end }}
  {{- with .Values.extraVolumeMounts }}
  {{- tpl (toYaml .) $ | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "rookery.node.volumes" -}}
{{- $fullname := include "rookery.fullname" . -}}
{{- $external := .Values.externalRedis -}}
{{- $auth := .Values.auth -}}
volumes:
  - name: config
    configMap:
      name: {{ $fullname }}
  - name: tmp
    emptyDir:
      sizeLimit: {{ .Values.tmpSizeLimit }}
  {{- with include "rookery.authSecretName" . }}
  - name: auth
    secret:
      secretName: {{ . }}
      items:
        {{- if ternary $auth.usersKey $auth.users (ne $auth.existingSecret "") }}
        - key: {{ ternary $auth.usersKey "users" (ne $auth.existingSecret "") }}
          path: users
        {{- end }}
        {{- if ternary $auth.aclKey $auth.acl (ne $auth.existingSecret "") }}
        - key: {{ ternary $auth.aclKey "acl" (ne $auth.existingSecret "") }}
          path: acl
        {{- end }}
  {{- end }}
  {{- if include "rookery.tlsWanted" . }}
  - name: tls
    secret:
      secretName: {{ include "rookery.tlsSecretName" . }}
      items:
        - key: tls.crt
          path: tls.crt
        - key: tls.key
          path: tls.key
  {{- if ne .Values.tls.clientCertificates "none" }}
  - name: client-ca
    secret:
      secretName: {{ default (include "rookery.tlsSecretName" .) .Values.tls.caSecret }}
      items:
        - key: {{ .Values.tls.caKey }}
          path: ca.crt
  {{- end }}
  {{- end }}
  {{- if include "rookery.redis.tlsFiles" . }}
  - name: redis-tls
    secret:
      secretName: {{ $external.tls.existingSecret }}
      items:
        {{- with $external.tls.caKey }}
        - key: {{ . }}
          path: ca.crt
        {{- end }}
        {{- with $external.tls.certKey }}
        - key: {{ . }}
          path: tls.crt
        - key: {{ required "externalRedis.tls.keyKey: the certificate needs its private key" $external.tls.keyKey }}
          path: tls.key
        {{- end }}
  {{- end }}
  {{- with .Values.extraVolumes }}
  {{- tpl (toYaml .) $ | nindent 2 }}
  {{- end }}
{{- end -}}
