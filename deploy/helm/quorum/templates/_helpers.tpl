{{- define "quorum.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}{{ .Release.Name | trunc 53 | trimSuffix "-" }}{{- else -}}{{ printf "%s-%s" .Release.Name $name | trunc 53 | trimSuffix "-" }}{{- end -}}
{{- end -}}
{{- end -}}

{{- define "quorum.selector" -}}
app.kubernetes.io/name: {{ default .Chart.Name .Values.nameOverride }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "quorum.labels" -}}
{{ include "quorum.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* Image of a process with that many GPUs: (dict "root" $ "gpus" n) */}}
{{- define "quorum.image" -}}
{{- $tag := .root.Values.image.tag | default (ternary "cuda" "cpu" (gt (int .gpus) 0)) -}}
{{ .root.Values.image.repository }}:{{ $tag }}
{{- end -}}

{{- define "quorum.scheme" -}}
{{ ternary "HTTP" "HTTPS" (eq .Values.tls.source "none") }}
{{- end -}}

{{- define "quorum.podSecurity" -}}
automountServiceAccountToken: false
enableServiceLinks: false
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: { type: RuntimeDefault }
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "quorum.containerSecurity" -}}
securityContext:
  readOnlyRootFilesystem: true
  allowPrivilegeEscalation: false
  capabilities: { drop: [ALL] }
{{- end -}}

{{/* Probes of a page: (dict "root" $ "port" "http" "ready" "/healthz") */}}
{{- define "quorum.probes" -}}
{{- $scheme := include "quorum.scheme" .root -}}
# Reading and hashing a large model takes long.
startupProbe:
  httpGet: { path: /healthz, port: {{ .port }}, scheme: {{ $scheme }} }
  periodSeconds: 5
  failureThreshold: 720
readinessProbe:
  httpGet: { path: {{ .ready }}, port: {{ .port }}, scheme: {{ $scheme }} }
  periodSeconds: 5
  failureThreshold: 6
livenessProbe:
  httpGet: { path: /healthz, port: {{ .port }}, scheme: {{ $scheme }} }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end -}}

{{/* Certificates and token of one side as a volume: (dict "root" $ "side" "member") */}}
{{- define "quorum.certs" -}}
{{- $tls := .root.Values.tls -}}
- name: certs
{{- if eq $tls.source "certManager" }}
  projected:
    defaultMode: 0440
    sources:
      - secret:
          name: {{ include "quorum.fullname" .root }}-{{ .side }}-tls
          items:
            - { key: ca.crt, path: ca.pem }
            - { key: tls.crt, path: cert.pem }
            - { key: tls.key, path: key.pem }
      - secret:
          name: {{ $tls.tokenSecret }}
          items:
            - { key: token, path: token }
{{- else }}
  secret:
    secretName: {{ ternary $tls.coordinatorSecret $tls.memberSecret (eq .side "coordinator") }}
    defaultMode: 0440
{{- end }}
{{- end -}}

{{/* What a worker or learner rank is told by its environment. */}}
{{- define "quorum.memberEnv" -}}
- name: QUORUM_COORDINATOR
  value: {{ ternary "http" "https" (eq .Values.tls.source "none") }}://{{ include "quorum.fullname" . }}-coordinator:7070
- name: QUORUM_ID
  valueFrom: { fieldRef: { fieldPath: metadata.name } }
{{- if ne .Values.tls.source "none" }}
- { name: QUORUM_TLS_CA, value: /etc/quorum/member/ca.pem }
- { name: QUORUM_TLS_CERT, value: /etc/quorum/member/cert.pem }
- { name: QUORUM_TLS_KEY, value: /etc/quorum/member/key.pem }
- { name: QUORUM_TOKEN_FILE, value: /etc/quorum/member/token }
{{- end }}
{{- end -}}

{{- define "quorum.claim" -}}
{{ .Values.storage.existingClaim | default (printf "%s-run" (include "quorum.fullname" .)) }}
{{- end -}}

{{/* Volumes of coordinator and learner. */}}
{{- define "quorum.runVolumes" -}}
- name: run
  persistentVolumeClaim: { claimName: {{ include "quorum.claim" . }} }
- name: tmp
  emptyDir: {}
{{- with .Values.data.existingClaim }}
- name: data
  persistentVolumeClaim: { claimName: {{ . }}, readOnly: true }
{{- end }}
{{- end -}}

{{- define "quorum.runMounts" -}}
- { name: run, mountPath: /var/lib/quorum }
- { name: tmp, mountPath: /tmp }
{{- if .Values.data.existingClaim }}
- { name: data, mountPath: /data, readOnly: true }
{{- end }}
{{- end -}}

{{/* What cannot work is said before anything is made. */}}
{{- define "quorum.check" -}}
{{- if and (gt (int .Values.learner.ranks) 1) (eq (int .Values.learner.gpus) 0) -}}
{{- fail "learner.ranks > 1 needs learner.gpus: 1: between pods, ranks are connected by NCCL (MPI clusters: deploy/slurm)" -}}
{{- end -}}
{{- if and (eq .Values.autoscaling.kind "keda") (not .Values.autoscaling.prometheus) -}}
{{- fail "autoscaling.kind: keda needs autoscaling.prometheus, the address of the Prometheus that scrapes this release" -}}
{{- end -}}
{{- if and (eq .Values.autoscaling.kind "hpa") (lt (int .Values.autoscaling.minReplicas) 1) -}}
{{- fail "autoscaling.kind: hpa needs autoscaling.minReplicas of at least 1; only keda scales to none" -}}
{{- end -}}
{{- if and (eq .Values.tls.source "certManager") (not .Values.tls.issuerRef.name) -}}
{{- fail "tls.source: certManager needs tls.issuerRef.name, a CA issuer: both sides must be signed by one authority" -}}
{{- end -}}
{{- if gt (int .Values.autoscaling.minReplicas) (int .Values.autoscaling.maxReplicas) -}}
{{- fail "autoscaling.minReplicas is above autoscaling.maxReplicas" -}}
{{- end -}}
{{- range $key := list "run.dir" "learner.ranks" "cluster.listen" "cluster.http" "cluster.tls_cert" "cluster.tls_key" "cluster.tls_client_ca" "cluster.token_file" -}}
{{- if hasKey $.Values.run.settings $key -}}
{{- fail (printf "run.settings: %s is set by the chart (run.name, learner.ranks, tls)" $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
