{{- define "jethook.name" -}}
{{- if contains "jethook" .Release.Name }}{{ .Release.Name | trunc 63 | trimSuffix "-" }}{{ else }}{{ printf "%s-jethook" .Release.Name | trunc 63 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "jethook.selector" -}}
app.kubernetes.io/name: jethook
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "jethook.labels" -}}
{{ include "jethook.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "jethook.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "jethook.environment" -}}
- configMapRef:
    name: {{ include "jethook.name" . }}
- secretRef:
    name: {{ .Values.existingSecret }}
{{- end }}

{{- define "jethook.nothing" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: ["ALL"]
{{- end }}
