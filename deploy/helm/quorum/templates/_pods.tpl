{{/* Pod of the coordinator. */}}
{{- define "quorum.coordinatorPod" -}}
metadata:
  labels:
    {{- include "quorum.selector" . | nindent 4 }}
    app.kubernetes.io/component: coordinator
  annotations:
    checksum/config: {{ include (print $.Template.BasePath "/config.yaml") . | sha256sum }}
spec:
  {{- include "quorum.podSecurity" . | nindent 2 }}
  # Stopping takes a moment: leases are taken back, the ledger is closed.
  terminationGracePeriodSeconds: 60
  {{- with .Values.coordinator.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.coordinator.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: coordinator
      image: {{ include "quorum.image" (dict "root" . "gpus" 0) }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      command: [coordinator]
      args:
        # The same command starts the run and goes on with it.
        - --continue
        {{- if eq .Values.controlPlane.kind "StatefulSet" }}
        - --stay
        {{- end }}
        - --progress=json
        - --log={{ .Values.run.log }}
        {{- if .Values.run.config }}
        - --config=/etc/quorum/run/run.toml
        {{- end }}
        {{- if not (hasKey (.Values.run.settings | default dict) "cluster.join_seconds") }}
        # Pods may wait for nodes and images.
        - --set=cluster.join_seconds=1800
        {{- end }}
        {{- range $key, $value := .Values.run.settings }}
        - {{ printf "--set=%s=%s" $key (kindIs "string" $value | ternary $value (toJson $value)) | quote }}
        {{- end }}
        - --set=run.dir=/var/lib/quorum/{{ .Values.run.name }}
        - --set=learner.ranks={{ .Values.learner.ranks }}
        - --set=cluster.listen=0.0.0.0:7070
        - --set=cluster.http=0.0.0.0:7071
        {{- if eq .Values.tls.source "none" }}
        - --insecure
        {{- else }}
        - --set=cluster.tls_cert=/etc/quorum/coordinator/cert.pem
        - --set=cluster.tls_key=/etc/quorum/coordinator/key.pem
        - --set=cluster.tls_client_ca=/etc/quorum/coordinator/ca.pem
        - --set=cluster.token_file=/etc/quorum/coordinator/token
        {{- end }}
      ports:
        - { name: grpc, containerPort: 7070 }
        - { name: http, containerPort: 7071 }
      # Not /readyz: that ends with the run, and a StatefulSet replaces no pod that is not ready.
      {{- include "quorum.probes" (dict "root" . "port" "http" "ready" "/healthz") | nindent 6 }}
      {{- include "quorum.containerSecurity" . | nindent 6 }}
      resources: {{- toYaml .Values.coordinator.resources | nindent 8 }}
      volumeMounts:
        {{- include "quorum.runMounts" . | nindent 8 }}
        {{- if ne .Values.tls.source "none" }}
        - { name: certs, mountPath: /etc/quorum/coordinator, readOnly: true }
        {{- end }}
        {{- if .Values.run.config }}
        - { name: config, mountPath: /etc/quorum/run, readOnly: true }
        {{- end }}
  volumes:
    {{- include "quorum.runVolumes" . | nindent 4 }}
    {{- if ne .Values.tls.source "none" }}
    {{- include "quorum.certs" (dict "root" . "side" "coordinator") | nindent 4 }}
    {{- end }}
    {{- if .Values.run.config }}
    - name: config
      configMap: { name: {{ include "quorum.fullname" . }}-run }
    {{- end }}
{{- end -}}

{{/* Pod of a learner rank: (dict "root" $ "rank" fieldPath) */}}
{{- define "quorum.learnerPod" -}}
{{- $root := .root -}}
{{- with .root -}}
metadata:
  labels:
    {{- include "quorum.selector" . | nindent 4 }}
    app.kubernetes.io/component: learner
  annotations:
    checksum/config: {{ include (print $root.Template.BasePath "/config.yaml") . | sha256sum }}
spec:
  {{- include "quorum.podSecurity" . | nindent 2 }}
  terminationGracePeriodSeconds: 60
  {{- with .Values.learner.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.learner.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if eq .Values.storage.accessMode "ReadWriteOnce" }}
  # The volume is on one node at a time.
  affinity:
    podAffinity:
      requiredDuringSchedulingIgnoredDuringExecution:
        - topologyKey: kubernetes.io/hostname
          labelSelector:
            matchLabels:
              {{- include "quorum.selector" . | nindent 14 }}
              app.kubernetes.io/component: coordinator
  {{- end }}
  containers:
    - name: learner
      image: {{ include "quorum.image" (dict "root" . "gpus" .Values.learner.gpus) }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      command: [learner]
      args:
        - --rank=$(RANK)
        - --world={{ .Values.learner.ranks }}
        {{- if gt (int .Values.learner.gpus) 0 }}
        - --device=cuda:0
        {{- end }}
        {{- if gt (int .Values.learner.ranks) 1 }}
        - --transport=nccl
        {{- end }}
        - --metrics=0.0.0.0:7072
        - --join-seconds=1800
        - --log={{ .Values.run.log }}
        {{- if eq .Values.controlPlane.kind "StatefulSet" }}
        - --stay
        {{- end }}
        {{- if eq .Values.tls.source "none" }}
        - --insecure
        {{- end }}
      env:
        - name: RANK
          valueFrom: { fieldRef: { fieldPath: {{ $.rank | quote }} } }
        {{- include "quorum.memberEnv" . | nindent 8 }}
      ports:
        - { name: metrics, containerPort: 7072 }
      {{- include "quorum.probes" (dict "root" . "port" "metrics" "ready" "/readyz") | nindent 6 }}
      {{- include "quorum.containerSecurity" . | nindent 6 }}
      resources:
        {{- $resources := deepCopy .Values.learner.resources }}
        {{- if gt (int .Values.learner.gpus) 0 }}
        {{- $resources = mergeOverwrite $resources (dict "limits" (merge (dict "nvidia.com/gpu" .Values.learner.gpus) (default dict $resources.limits))) }}
        {{- end }}
        {{- toYaml $resources | nindent 8 }}
      volumeMounts:
        {{- include "quorum.runMounts" . | nindent 8 }}
        {{- if ne .Values.tls.source "none" }}
        - { name: certs, mountPath: /etc/quorum/member, readOnly: true }
        {{- end }}
        {{- if gt (int .Values.learner.ranks) 1 }}
        - { name: shm, mountPath: /dev/shm }
        {{- end }}
  volumes:
    {{- include "quorum.runVolumes" . | nindent 4 }}
    {{- if ne .Values.tls.source "none" }}
    {{- include "quorum.certs" (dict "root" . "side" "member") | nindent 4 }}
    {{- end }}
    {{- if gt (int .Values.learner.ranks) 1 }}
    # NCCL's shared memory between ranks of one node.
    - name: shm
      emptyDir: { medium: Memory, sizeLimit: 2Gi }
    {{- end }}
{{- end -}}
{{- end -}}
