{{- /* Names are fixed: what runs on the nodes is found by them. Only the controller's carry the revision. */}}
{{- define "stillmesh.controller" -}}
stillmesh-controller{{ if ne .Values.revision "default" }}-{{ .Values.revision }}{{ end }}
{{- end }}

{{- define "stillmesh.image" -}}
{{- $tag := .Values.image.tag | default (ternary "" .Chart.AppVersion (ne .Values.image.digest "")) -}}
{{ .Values.image.repository }}{{ with $tag }}:{{ . }}{{ end }}{{ with .Values.image.digest }}@{{ . }}{{ end }}
{{- end }}

{{- /* Labels of an object. Called with (list context name). */}}
{{- define "stillmesh.labels" -}}
{{- $context := index . 0 -}}
app.kubernetes.io/name: {{ index . 1 }}
app.kubernetes.io/instance: {{ $context.Release.Name }}
app.kubernetes.io/part-of: stillmesh
app.kubernetes.io/version: {{ $context.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $context.Values.managedBy | default $context.Release.Service }}
helm.sh/chart: {{ $context.Chart.Name }}-{{ $context.Chart.Version | replace "+" "_" }}
{{- end }}

{{- /* Labels of a pod besides its selector's. They change with the version only. */}}
{{- define "stillmesh.podLabels" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: stillmesh
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
istio.io/dataplane-mode: none
{{- end }}

{{- define "stillmesh.controllerSelector" -}}
app.kubernetes.io/name: stillmesh-controller
istio.io/rev: {{ .Values.revision }}
{{- end }}

{{- /* What Istio's tools look for is another `app`, so nothing of ours selects by it. */}}
{{- define "stillmesh.controllerApp" -}}
app: {{ ternary "istiod" "stillmesh-controller" .Values.compat.istio }}
{{- if .Values.compat.istio }}
istio: pilot
{{- end }}
{{- end }}

{{- define "stillmesh.cniApp" -}}
app: stillmesh-cni
k8s-app: {{ ternary "istio-cni-node" "stillmesh-cni-node" .Values.compat.istio }}
{{- end }}

{{- /* Annotations of a pod: (list podAnnotations port). */}}
{{- define "stillmesh.podAnnotations" -}}
{{- $scrape := dict "prometheus.io/scrape" "true" "prometheus.io/port" (index . 1) "prometheus.io/path" "/metrics" -}}
{{ toYaml (mergeOverwrite $scrape (index . 0)) }}
{{- end }}

{{- /* Environment of a container: (list part fields defaults overrides). `fields` come from the pod itself: a map of name to path.
The other two are maps of strings, rendered in the order of their keys. An empty value is the same as none, and is left
out: the API server would not keep it. */}}
{{- define "stillmesh.env" -}}
{{- range $key, $path := index . 1 }}
{{- if hasKey (index $ 3) $key }}
{{- fail (printf "%s.env: %s comes from the pod itself and cannot be set" (index $ 0) $key) }}
{{- end }}
- name: {{ $key }}
  valueFrom:
    fieldRef:
      apiVersion: v1
      fieldPath: {{ $path }}
{{- end }}
{{- range $key, $value := mergeOverwrite (index . 2) (index . 3) }}
{{- if $value }}
- name: {{ $key }}
  value: {{ $value | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- /* Where pods may run: nodeSelector, tolerations, affinity, priority, pull secrets. (list context values) */}}
{{- define "stillmesh.placement" -}}
{{- $values := index . 1 -}}
priorityClassName: {{ $values.priorityClassName }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with (index . 0).Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
