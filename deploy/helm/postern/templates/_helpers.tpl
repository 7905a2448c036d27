{{/* The name that everything begins with. */}}
{{- define "postern.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 45 | trimSuffix "-" }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 45 | trimSuffix "-" }}{{ end }}
{{- end }}

{{/* Labels that never change, to select pods by. */}}
{{- define "postern.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "postern.labels" -}}
{{ include "postern.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{/* The image of a role: (list $ role). */}}
{{- define "postern.image" -}}
{{- $ := index . 0 }}{{- $role := index . 1 }}
{{- if $.Values.image.digest }}{{ $.Values.image.repository }}@{{ $.Values.image.digest }}
{{- else }}{{ $.Values.image.repository }}:{{ $role.tag | default $.Values.image.tag | default $.Chart.AppVersion }}{{ end }}
{{- end }}

{{/*
postern.yaml of a role: (list $ role-name). What belongs to one role alone is not in the file of another, and
no secret is in any: they are files below /etc/postern/secrets.
*/}}
{{- define "postern.config" -}}
{{- $ := index . 0 }}{{- $name := index . 1 }}{{- $v := $.Values }}
{{- $kafka := dict "brokers" (required "kafka.brokers: name at least one broker, such as kafka-1.example.net:9093" $v.kafka.brokers)
      "prefix" $v.kafka.prefix "group" $v.kafka.group "partitions" (int $v.kafka.partitions) "replication" (int $v.kafka.replication) }}
{{- if $v.kafka.tls.enabled }}
  {{- $tls := dict "enabled" true }}
  {{- if $v.kafka.tls.ca }}{{ $_ := set $tls "ca" "/etc/postern/secrets/kafka/ca.crt" }}{{ end }}
  {{- if $v.kafka.tls.clientCertificate }}{{ $_ := set $tls "cert" "/etc/postern/secrets/kafka/tls.crt" }}{{ $_ := set $tls "key" "/etc/postern/secrets/kafka/tls.key" }}{{ end }}
  {{- $_ := set $kafka "tls" $tls }}
{{- end }}
{{- if $v.kafka.sasl.mechanism }}
  {{- $_ := set $kafka "sasl" (dict "mechanism" $v.kafka.sasl.mechanism "username" $v.kafka.sasl.username "password" "file:/etc/postern/secrets/kafka/password") }}
{{- end }}
{{- $c := dict "data" "/var/lib/postern" "log" (dict "format" "json") "kafka" $kafka
      "admin" (dict "listen" ":9464" "token" (printf "file:/etc/postern/secrets/admin/%s" $v.admin.key)) }}
{{- $off := dict "listen" "" }}
{{- $ingest := dict "netflow" $off "sflow" $off }}
{{- if eq $name "collect" }}
  {{- $exporters := required "collect.exporters: say who may send, such as [192.0.2.0/24]" $v.collect.exporters }}
  {{- if $v.collect.netflow.enabled }}{{ $_ := set $ingest "netflow" (dict "listen" (printf ":%d" (int $v.collect.netflow.port)) "exporters" $exporters) }}{{ end }}
  {{- if $v.collect.sflow.enabled }}{{ $_ := set $ingest "sflow" (dict "listen" (printf ":%d" (int $v.collect.sflow.port)) "exporters" $exporters) }}{{ end }}
  {{- $_ := set $ingest "spool" (dict "maxBytes" $v.collect.spool.maxBytes) }}
{{- end }}
{{- if and (has $name (list "collect" "identity")) $v.collect.logs.enabled }}
  {{- $_ := set $ingest "logs" (dict "http" (dict "listen" (printf ":%d" (int $v.collect.logs.port)) "token" "file:/etc/postern/secrets/logs/token"
        "tls" (dict "cert" "/etc/postern/secrets/logs/tls.crt" "key" "/etc/postern/secrets/logs/tls.key"))) }}
{{- end }}
{{- $_ := set $c "ingest" $ingest }}
{{- if and (has $name (list "identity" "detect")) $v.identity.enabled }}{{ $_ := set $c "identity" $v.identity.config }}{{ end }}
{{- if eq $name "detect" }}
  {{- $_ := set $c "policy" (dict "dir" "/etc/postern/policy") }}
  {{- $ch := dict "url" (required "clickhouse.url: name the server, such as clickhouse://postern@clickhouse.example.net:9440" $v.clickhouse.url) }}
  {{- if $v.clickhouse.existingSecret }}{{ $_ := set $ch "password" "file:/etc/postern/secrets/clickhouse/password" }}{{ end }}
  {{- if $v.clickhouse.tls.enabled }}
    {{- $tls := dict "enabled" true }}
    {{- if $v.clickhouse.tls.ca }}{{ $_ := set $tls "ca" "/etc/postern/secrets/clickhouse/ca.crt" }}{{ end }}
    {{- if $v.clickhouse.tls.clientCertificate }}{{ $_ := set $tls "cert" "/etc/postern/secrets/clickhouse/tls.crt" }}{{ $_ := set $tls "key" "/etc/postern/secrets/clickhouse/tls.key" }}{{ end }}
    {{- $_ := set $ch "tls" $tls }}
  {{- end }}
  {{- $_ := set $c "clickhouse" $ch }}
{{- end }}
{{- $own := (index $v $name).config }}
{{- if eq $name "identity" }}{{ $own = dict }}{{ end }}
{{- toYaml (mustMergeOverwrite $c (deepCopy $v.config) (deepCopy $own)) }}
{{- end }}

{{/* What a pod of a role is, apart from its volume of data: (list $ role-name command). */}}
{{- define "postern.pod" -}}
{{- $ := index . 0 }}{{- $name := index . 1 }}{{- $command := index . 2 }}{{- $v := $.Values }}{{- $role := index $v $name }}
metadata:
  annotations:
    # postern.yaml is read once, at the start: a change of it makes new pods.
    checksum/config: {{ include "postern.config" (list $ $name) | sha256sum }}
    {{- with $v.podAnnotations }}{{ toYaml . | nindent 4 }}{{ end }}
  labels:
    {{- include "postern.selector" $ | nindent 4 }}
    app.kubernetes.io/component: {{ $name }}
    {{- with $v.podLabels }}{{ toYaml . | nindent 4 }}{{ end }}
spec:
  serviceAccountName: {{ include "postern.name" $ }}{{ if and (eq $name "identity") $v.identity.kubernetes }}-identity{{ end }}
  automountServiceAccountToken: {{ and (eq $name "identity") $v.identity.kubernetes }}
  {{- with $v.imagePullSecrets }}
  imagePullSecrets: {{ toYaml . | nindent 4 }}
  {{- end }}
  {{- with $v.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  # What was begun is closed within `shutdown` (20 s); the rest is for a Kafka that is slow.
  terminationGracePeriodSeconds: 60
  securityContext:
    runAsNonRoot: true
    runAsUser: 65532
    runAsGroup: 65532
    fsGroup: 65532
    fsGroupChangePolicy: OnRootMismatch
    seccompProfile: {type: RuntimeDefault}
  topologySpreadConstraints:
    - maxSkew: 1
      topologyKey: kubernetes.io/hostname
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "postern.selector" $ | nindent 10 }}
          app.kubernetes.io/component: {{ $name }}
  {{- with $role.nodeSelector }}
  nodeSelector: {{ toYaml . | nindent 4 }}
  {{- end }}
  {{- with $role.tolerations }}
  tolerations: {{ toYaml . | nindent 4 }}
  {{- end }}
  {{- with $role.affinity }}
  affinity: {{ toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: postern
      image: {{ include "postern.image" (list $ $role) }}
      imagePullPolicy: {{ $v.image.pullPolicy }}
      args: [{{ $command }}, -c, /etc/postern/postern.yaml]
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
      ports:
        - {name: admin, containerPort: 9464, protocol: TCP}
        {{- range fromYamlArray (include "postern.ports" (list $ $name)) }}
        - {name: {{ .name }}, containerPort: {{ .port }}, protocol: {{ .protocol }}}
        {{- end }}
      # Alive is who answers; ready is who can do its work, and says why not where ClickHouse or Kafka is
      # away. That is no reason to be started anew: what was begun would be done twice.
      startupProbe:
        httpGet: {path: /healthz, port: admin}
        periodSeconds: 5
        failureThreshold: 60
      livenessProbe:
        httpGet: {path: /healthz, port: admin}
        periodSeconds: 10
        timeoutSeconds: 5
        failureThreshold: 6
      readinessProbe:
        httpGet: {path: /readyz, port: admin}
        periodSeconds: 5
        timeoutSeconds: 5
      resources: {{ toYaml $role.resources | nindent 8 }}
      volumeMounts:
        - {name: data, mountPath: /var/lib/postern}
        - {name: tmp, mountPath: /tmp}
        - {name: config, mountPath: /etc/postern/postern.yaml, subPath: {{ $name }}.yaml, readOnly: true}
        {{- range $mount, $secret := fromYaml (include "postern.secrets" (list $ $name)) }}
        - {name: secret-{{ $mount }}, mountPath: /etc/postern/secrets/{{ $mount }}, readOnly: true}
        {{- end }}
        {{- if eq $name "detect" }}
        - {name: policy, mountPath: /etc/postern/policy, readOnly: true}
        {{- end }}
  volumes:
    - {name: tmp, emptyDir: {sizeLimit: 1Gi}}
    - {name: config, configMap: {name: {{ include "postern.name" $ }}}}
    {{- range $mount, $secret := fromYaml (include "postern.secrets" (list $ $name)) }}
    - {name: secret-{{ $mount }}, secret: {secretName: {{ $secret }}, defaultMode: 288}} # 0440
    {{- end }}
    {{- if eq $name "detect" }}
    - {name: policy, configMap: {name: {{ include "postern.policy" $ }}}}
    # Nothing on it has to outlive the pod: what detectors remember is on the state topic.
    - {name: data, emptyDir: {sizeLimit: 2Gi}}
    {{- end }}
{{- end }}

{{/* The Secrets of a role, by the folder they are mounted at: (list $ role-name). */}}
{{- define "postern.secrets" -}}
{{- $ := index . 0 }}{{- $name := index . 1 }}{{- $v := $.Values }}
admin: {{ required "admin.existingSecret: name the Secret that holds the admin token" $v.admin.existingSecret }}
{{- with $v.kafka.existingSecret }}
kafka: {{ . }}
{{- end }}
{{- if and (eq $name "detect") $v.clickhouse.existingSecret }}
clickhouse: {{ $v.clickhouse.existingSecret }}
{{- end }}
{{- if and (has $name (list "collect" "identity")) $v.collect.logs.enabled }}
logs: {{ required "collect.logs.existingSecret: name the Secret that holds tls.crt, tls.key and token" $v.collect.logs.existingSecret }}
{{- end }}
{{- range (index $v $name).secrets }}
{{ . }}: {{ . }}
{{- end }}
{{- end }}

{{/* The ports that a role listens on beside the admin address: (list $ role-name). */}}
{{- define "postern.ports" -}}
{{- $ := index . 0 }}{{- $name := index . 1 }}{{- $c := $.Values.collect }}
{{- if eq $name "collect" }}
{{- if $c.netflow.enabled }}
- {name: netflow, port: {{ $c.netflow.port }}, protocol: UDP}
{{- end }}
{{- if $c.sflow.enabled }}
- {name: sflow, port: {{ $c.sflow.port }}, protocol: UDP}
{{- end }}
{{- with $c.extraPorts }}{{ toYaml . | nindent 0 }}{{ end }}
{{- end }}
{{- if and (has $name (list "collect" "identity")) $c.logs.enabled }}
- {name: logs, port: {{ $c.logs.port }}, protocol: TCP}
{{- end }}
{{- end }}

{{- define "postern.policy" -}}
{{- if .Values.policy.files }}{{ include "postern.name" . }}-policy
{{- else }}{{ required "policy.existingConfigMap: name the ConfigMap that holds the policy, or give policy.files" .Values.policy.existingConfigMap }}{{ end }}
{{- end }}

{{/* The roles that are on. */}}
{{- define "postern.roles" -}}
{{- $v := .Values }}
{{- range list "collect" "identity" "detect" "forward" }}{{ if (index $v .).enabled }}
- {{ . }}
{{- end }}{{ end }}
{{- end }}

{{/* A claim for the data of a role: (list $ role). */}}
{{- define "postern.claim" -}}
{{- $role := index . 1 }}
metadata: {name: data}
spec:
  accessModes: [ReadWriteOnce]
  {{- with $role.persistence.storageClass }}
  storageClassName: {{ . }}
  {{- end }}
  resources: {requests: {storage: {{ $role.persistence.size }}}}
{{- end }}
