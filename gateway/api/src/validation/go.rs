//! How Go prints the API server's internal types: with fields named and ordered as in the source, and with zero values.
//!
//! Some messages show a whole object in this form, or the difference between two. The tables say what the fields are;
//! what a table doesn't know is shown as it is.

use serde_json::{Map, Value};

use crate::validation::json::get;

/// What a field holds when it is absent, and what is in it when it isn't.
#[derive(Clone, Copy)]
pub enum Shape {
    /// `null`, or a plain value: a pointer to a scalar, a list of texts.
    Nil,
    /// `null`, or a map: Go sorts its keys.
    Map,
    /// A text, empty when absent.
    Text,
    /// `false` when absent.
    Bool,
    /// `0` when absent.
    Int,
    /// `null`, or an object.
    Pointer(Fields),
    /// An object, also when absent.
    Object(Fields),
    /// `null`, or a list of objects.
    List(Fields),
    /// The fields of this object stand in the outer one.
    Embedded(Fields),
}

/// Go's name, the name in JSON, the shape.
pub type Fields = &'static [(&'static str, &'static str, Shape)];

use Shape::{Bool, Embedded, Int, List, Nil, Object, Pointer, Text};

/// The value as Go's encoder prints it.
pub fn value(fields: Fields, value: &Value) -> Value {
    let mut shown = Map::new();
    fill(&mut shown, fields, value);
    Value::Object(shown)
}

fn fill(shown: &mut Map<String, Value>, fields: Fields, object: &Value) {
    for (go, json, shape) in fields {
        let inner = get(object, json);
        let printed = match shape {
            Embedded(fields) => {
                fill(shown, fields, object);
                continue;
            }
            Nil => inner.cloned().unwrap_or(Value::Null),
            Shape::Map => inner.map_or(Value::Null, sorted),
            Text => inner.cloned().unwrap_or_else(|| Value::from("")),
            Bool => inner.cloned().unwrap_or(Value::Bool(false)),
            Int => inner.cloned().unwrap_or_else(|| Value::from(0)),
            Pointer(fields) => inner.map_or(Value::Null, |inner| value(fields, inner)),
            Object(fields) => value(fields, inner.unwrap_or(&Value::Null)),
            List(fields) => inner
                .and_then(Value::as_array)
                .map_or(Value::Null, |items| Value::Array(items.iter().map(|item| value(fields, item)).collect())),
        };
        shown.insert((*go).to_owned(), printed);
    }
}

/// A map with its keys in order, as Go prints maps.
pub fn sorted(map: &Value) -> Value {
    let Some(map) = map.as_object() else { return map.clone() };
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort_by_key(|(key, _)| key.as_str());
    Value::Object(entries.into_iter().map(|(key, value)| (key.clone(), value.clone())).collect())
}

/// A label selector with its labels in order.
pub fn selector(selector: &Value) -> Value {
    let mut shown = selector.clone();
    if let Some(labels) = shown.get_mut("matchLabels") {
        *labels = sorted(labels);
    }
    shown
}

/// A pod's spec. Namespaces shared with the host are part of the security context internally.
pub fn pod_spec(spec: &Value) -> Value {
    let mut spec = spec.clone();
    let shared = ["hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace", "hostUsers"];
    let found: Vec<(&str, Value)> = shared.iter().filter_map(|f| Some((*f, get(&spec, f)?.clone()))).collect();
    if let Some(context) = spec.get_mut("securityContext").and_then(Value::as_object_mut) {
        for (field, value) in found {
            context.insert(field.to_owned(), value);
        }
    }
    value(POD_SPEC, &spec)
}

/// A pod template: metadata as it is, then the spec.
pub fn pod_template(template: &Value) -> Value {
    let mut shown = get(template, "metadata").and_then(Value::as_object).cloned().unwrap_or_default();
    shown.insert("Spec".to_owned(), pod_spec(template.get("spec").unwrap_or(&Value::Null)));
    Value::Object(shown)
}

/// The security context of a container.
pub const SECURITY_CONTEXT: Fields = &[
    ("Capabilities", "capabilities", Pointer(&[("Add", "add", Nil), ("Drop", "drop", Nil)])),
    ("Privileged", "privileged", Nil),
    ("SELinuxOptions", "seLinuxOptions", Pointer(SE_LINUX)),
    ("WindowsOptions", "windowsOptions", Pointer(WINDOWS)),
    ("RunAsUser", "runAsUser", Nil),
    ("RunAsGroup", "runAsGroup", Nil),
    ("RunAsNonRoot", "runAsNonRoot", Nil),
    ("ReadOnlyRootFilesystem", "readOnlyRootFilesystem", Nil),
    ("AllowPrivilegeEscalation", "allowPrivilegeEscalation", Nil),
    ("ProcMount", "procMount", Nil),
    ("SeccompProfile", "seccompProfile", Pointer(PROFILE)),
    ("AppArmorProfile", "appArmorProfile", Pointer(PROFILE)),
];

/// How a Deployment replaces pods.
pub const DEPLOYMENT_STRATEGY: Fields = &[
    ("Type", "type", Text),
    (
        "RollingUpdate",
        "rollingUpdate",
        Pointer(&[("MaxUnavailable", "maxUnavailable", Int), ("MaxSurge", "maxSurge", Int)]),
    ),
];

/// How a StatefulSet replaces pods.
pub const STATEFUL_STRATEGY: Fields =
    &[("Type", "type", Text), ("RollingUpdate", "rollingUpdate", Pointer(STATEFUL_ROLLING_UPDATE))];

/// How it rolls.
pub const STATEFUL_ROLLING_UPDATE: Fields =
    &[("Partition", "partition", Int), ("MaxUnavailable", "maxUnavailable", Nil)];

/// How many pods may be missing.
pub const DISRUPTION_BUDGET: Fields = &[
    ("MinAvailable", "minAvailable", Nil),
    ("Selector", "selector", Nil),
    ("MaxUnavailable", "maxUnavailable", Nil),
    ("UnhealthyPodEvictionPolicy", "unhealthyPodEvictionPolicy", Nil),
];

/// A port of a Service.
pub const SERVICE_PORT: Fields = &[
    ("Name", "name", Text),
    ("Protocol", "protocol", Text),
    ("AppProtocol", "appProtocol", Nil),
    ("Port", "port", Int),
    ("TargetPort", "targetPort", Int),
    ("NodePort", "nodePort", Int),
];

/// When a Job has succeeded.
pub const SUCCESS_POLICY: Fields = &[(
    "Rules",
    "rules",
    List(&[("SucceededIndexes", "succeededIndexes", Nil), ("SucceededCount", "succeededCount", Nil)]),
)];

/// What a pod's failure means for its Job.
pub const POD_FAILURE_POLICY: Fields = &[(
    "Rules",
    "rules",
    List(&[
        ("Action", "action", Text),
        (
            "OnExitCodes",
            "onExitCodes",
            Pointer(&[
                ("ContainerName", "containerName", Nil),
                ("Operator", "operator", Text),
                ("Values", "values", Nil),
            ]),
        ),
        ("OnPodConditions", "onPodConditions", List(&[("Type", "type", Text), ("Status", "status", Text)])),
    ]),
)];

const POD_SPEC: Fields = &[
    ("Volumes", "volumes", List(VOLUME)),
    ("InitContainers", "initContainers", List(CONTAINER)),
    ("Containers", "containers", List(CONTAINER)),
    ("EphemeralContainers", "ephemeralContainers", List(EPHEMERAL_CONTAINER)),
    ("RestartPolicy", "restartPolicy", Text),
    ("TerminationGracePeriodSeconds", "terminationGracePeriodSeconds", Nil),
    ("ActiveDeadlineSeconds", "activeDeadlineSeconds", Nil),
    ("DNSPolicy", "dnsPolicy", Text),
    ("NodeSelector", "nodeSelector", Shape::Map),
    ("ServiceAccountName", "serviceAccountName", Text),
    ("AutomountServiceAccountToken", "automountServiceAccountToken", Nil),
    ("NodeName", "nodeName", Text),
    ("SecurityContext", "securityContext", Pointer(POD_SECURITY_CONTEXT)),
    ("ImagePullSecrets", "imagePullSecrets", List(NAME)),
    ("Hostname", "hostname", Text),
    ("Subdomain", "subdomain", Text),
    ("SetHostnameAsFQDN", "setHostnameAsFQDN", Nil),
    ("Affinity", "affinity", Pointer(AFFINITY)),
    ("SchedulerName", "schedulerName", Text),
    (
        "Tolerations",
        "tolerations",
        List(&[
            ("Key", "key", Text),
            ("Operator", "operator", Text),
            ("Value", "value", Text),
            ("Effect", "effect", Text),
            ("TolerationSeconds", "tolerationSeconds", Nil),
        ]),
    ),
    ("HostAliases", "hostAliases", List(&[("IP", "ip", Text), ("Hostnames", "hostnames", Nil)])),
    ("PriorityClassName", "priorityClassName", Text),
    ("Priority", "priority", Nil),
    ("PreemptionPolicy", "preemptionPolicy", Nil),
    (
        "DNSConfig",
        "dnsConfig",
        Pointer(&[
            ("Nameservers", "nameservers", Nil),
            ("Searches", "searches", Nil),
            ("Options", "options", List(&[("Name", "name", Text), ("Value", "value", Nil)])),
        ]),
    ),
    ("ReadinessGates", "readinessGates", List(&[("ConditionType", "conditionType", Text)])),
    ("RuntimeClassName", "runtimeClassName", Nil),
    ("Overhead", "overhead", Shape::Map),
    ("EnableServiceLinks", "enableServiceLinks", Nil),
    (
        "TopologySpreadConstraints",
        "topologySpreadConstraints",
        List(&[
            ("MaxSkew", "maxSkew", Int),
            ("TopologyKey", "topologyKey", Text),
            ("WhenUnsatisfiable", "whenUnsatisfiable", Text),
            ("LabelSelector", "labelSelector", Nil),
            ("MinDomains", "minDomains", Nil),
            ("NodeAffinityPolicy", "nodeAffinityPolicy", Nil),
            ("NodeTaintsPolicy", "nodeTaintsPolicy", Nil),
            ("MatchLabelKeys", "matchLabelKeys", Nil),
        ]),
    ),
    ("OS", "os", Pointer(NAME)),
    ("SchedulingGates", "schedulingGates", List(NAME)),
    (
        "ResourceClaims",
        "resourceClaims",
        List(&[
            ("Name", "name", Text),
            ("ResourceClaimName", "resourceClaimName", Nil),
            ("ResourceClaimTemplateName", "resourceClaimTemplateName", Nil),
        ]),
    ),
    ("Resources", "resources", Pointer(RESOURCES)),
    ("HostnameOverride", "hostnameOverride", Nil),
    ("WorkloadRef", "workloadRef", Nil),
];

const CONTAINER: Fields = &[
    ("Name", "name", Text),
    ("Image", "image", Text),
    ("Command", "command", Nil),
    ("Args", "args", Nil),
    ("WorkingDir", "workingDir", Text),
    (
        "Ports",
        "ports",
        List(&[
            ("Name", "name", Text),
            ("HostPort", "hostPort", Int),
            ("ContainerPort", "containerPort", Int),
            ("Protocol", "protocol", Text),
            ("HostIP", "hostIP", Text),
        ]),
    ),
    (
        "EnvFrom",
        "envFrom",
        List(&[
            ("Prefix", "prefix", Text),
            ("ConfigMapRef", "configMapRef", Pointer(OPTIONAL_NAME)),
            ("SecretRef", "secretRef", Pointer(OPTIONAL_NAME)),
        ]),
    ),
    ("Env", "env", List(ENV)),
    ("Resources", "resources", Object(RESOURCES)),
    (
        "ResizePolicy",
        "resizePolicy",
        List(&[("ResourceName", "resourceName", Text), ("RestartPolicy", "restartPolicy", Text)]),
    ),
    ("RestartPolicy", "restartPolicy", Nil),
    ("RestartPolicyRules", "restartPolicyRules", Nil),
    (
        "VolumeMounts",
        "volumeMounts",
        List(&[
            ("Name", "name", Text),
            ("ReadOnly", "readOnly", Bool),
            ("RecursiveReadOnly", "recursiveReadOnly", Nil),
            ("MountPath", "mountPath", Text),
            ("SubPath", "subPath", Text),
            ("MountPropagation", "mountPropagation", Nil),
            ("SubPathExpr", "subPathExpr", Text),
        ]),
    ),
    ("VolumeDevices", "volumeDevices", List(&[("Name", "name", Text), ("DevicePath", "devicePath", Text)])),
    ("LivenessProbe", "livenessProbe", Pointer(PROBE)),
    ("ReadinessProbe", "readinessProbe", Pointer(PROBE)),
    ("StartupProbe", "startupProbe", Pointer(PROBE)),
    (
        "Lifecycle",
        "lifecycle",
        Pointer(&[
            ("PostStart", "postStart", Pointer(HOOK)),
            ("PreStop", "preStop", Pointer(HOOK)),
            ("StopSignal", "stopSignal", Nil),
        ]),
    ),
    ("TerminationMessagePath", "terminationMessagePath", Text),
    ("TerminationMessagePolicy", "terminationMessagePolicy", Text),
    ("ImagePullPolicy", "imagePullPolicy", Text),
    ("SecurityContext", "securityContext", Pointer(SECURITY_CONTEXT)),
    ("Stdin", "stdin", Bool),
    ("StdinOnce", "stdinOnce", Bool),
    ("TTY", "tty", Bool),
];

const EPHEMERAL_CONTAINER: Fields =
    &[("", "", Embedded(CONTAINER)), ("TargetContainerName", "targetContainerName", Text)];

const NAME: Fields = &[("Name", "name", Text)];
const OPTIONAL_NAME: Fields = &[("Name", "name", Text), ("Optional", "optional", Nil)];
const KEY: Fields = &[("Name", "name", Text), ("Key", "key", Text), ("Optional", "optional", Nil)];
const FIELD: Fields = &[("APIVersion", "apiVersion", Text), ("FieldPath", "fieldPath", Text)];
const RESOURCE_FIELD: Fields =
    &[("ContainerName", "containerName", Text), ("Resource", "resource", Text), ("Divisor", "divisor", Text)];
const RESOURCES: Fields = &[
    ("Limits", "limits", Shape::Map),
    ("Requests", "requests", Shape::Map),
    ("Claims", "claims", List(&[("Name", "name", Text), ("Request", "request", Text)])),
];

const ENV: Fields = &[
    ("Name", "name", Text),
    ("Value", "value", Text),
    (
        "ValueFrom",
        "valueFrom",
        Pointer(&[
            ("FieldRef", "fieldRef", Pointer(FIELD)),
            ("ResourceFieldRef", "resourceFieldRef", Pointer(RESOURCE_FIELD)),
            ("ConfigMapKeyRef", "configMapKeyRef", Pointer(KEY)),
            ("SecretKeyRef", "secretKeyRef", Pointer(KEY)),
            ("FileKeyRef", "fileKeyRef", Nil),
        ]),
    ),
];

const HTTP_GET: Fields = &[
    ("Path", "path", Text),
    ("Port", "port", Int),
    ("Host", "host", Text),
    ("Scheme", "scheme", Text),
    ("HTTPHeaders", "httpHeaders", List(&[("Name", "name", Text), ("Value", "value", Text)])),
];
const EXEC: Fields = &[("Command", "command", Nil)];
const TCP: Fields = &[("Port", "port", Int), ("Host", "host", Text)];

const HOOK: Fields = &[
    ("Exec", "exec", Pointer(EXEC)),
    ("HTTPGet", "httpGet", Pointer(HTTP_GET)),
    ("TCPSocket", "tcpSocket", Pointer(TCP)),
    ("Sleep", "sleep", Pointer(&[("Seconds", "seconds", Int)])),
];

const PROBE: Fields = &[
    ("Exec", "exec", Pointer(EXEC)),
    ("HTTPGet", "httpGet", Pointer(HTTP_GET)),
    ("TCPSocket", "tcpSocket", Pointer(TCP)),
    ("GRPC", "grpc", Pointer(&[("Port", "port", Int), ("Service", "service", Nil)])),
    ("InitialDelaySeconds", "initialDelaySeconds", Int),
    ("TimeoutSeconds", "timeoutSeconds", Int),
    ("PeriodSeconds", "periodSeconds", Int),
    ("SuccessThreshold", "successThreshold", Int),
    ("FailureThreshold", "failureThreshold", Int),
    ("TerminationGracePeriodSeconds", "terminationGracePeriodSeconds", Nil),
];

const PROFILE: Fields = &[("Type", "type", Text), ("LocalhostProfile", "localhostProfile", Nil)];
const SE_LINUX: Fields =
    &[("User", "user", Text), ("Role", "role", Text), ("Type", "type", Text), ("Level", "level", Text)];
const WINDOWS: Fields = &[
    ("GMSACredentialSpecName", "gmsaCredentialSpecName", Nil),
    ("GMSACredentialSpec", "gmsaCredentialSpec", Nil),
    ("RunAsUserName", "runAsUserName", Nil),
    ("HostProcess", "hostProcess", Nil),
];

const POD_SECURITY_CONTEXT: Fields = &[
    ("HostNetwork", "hostNetwork", Bool),
    ("HostPID", "hostPID", Bool),
    ("HostIPC", "hostIPC", Bool),
    ("ShareProcessNamespace", "shareProcessNamespace", Nil),
    ("HostUsers", "hostUsers", Nil),
    ("SELinuxOptions", "seLinuxOptions", Pointer(SE_LINUX)),
    ("WindowsOptions", "windowsOptions", Pointer(WINDOWS)),
    ("RunAsUser", "runAsUser", Nil),
    ("RunAsGroup", "runAsGroup", Nil),
    ("RunAsNonRoot", "runAsNonRoot", Nil),
    ("SupplementalGroups", "supplementalGroups", Nil),
    ("SupplementalGroupsPolicy", "supplementalGroupsPolicy", Nil),
    ("FSGroup", "fsGroup", Nil),
    ("FSGroupChangePolicy", "fsGroupChangePolicy", Nil),
    ("Sysctls", "sysctls", List(&[("Name", "name", Text), ("Value", "value", Text)])),
    ("SeccompProfile", "seccompProfile", Pointer(PROFILE)),
    ("AppArmorProfile", "appArmorProfile", Pointer(PROFILE)),
    ("SELinuxChangePolicy", "seLinuxChangePolicy", Nil),
];

const NODE_TERM: Fields =
    &[("MatchExpressions", "matchExpressions", List(REQUIREMENT)), ("MatchFields", "matchFields", List(REQUIREMENT))];
const REQUIREMENT: Fields = &[("Key", "key", Text), ("Operator", "operator", Text), ("Values", "values", Nil)];
const POD_TERM: Fields = &[
    ("LabelSelector", "labelSelector", Nil),
    ("Namespaces", "namespaces", Nil),
    ("TopologyKey", "topologyKey", Text),
    ("NamespaceSelector", "namespaceSelector", Nil),
    ("MatchLabelKeys", "matchLabelKeys", Nil),
    ("MismatchLabelKeys", "mismatchLabelKeys", Nil),
];
const POD_AFFINITY: Fields = &[
    (
        "RequiredDuringSchedulingIgnoredDuringExecution",
        "requiredDuringSchedulingIgnoredDuringExecution",
        List(POD_TERM),
    ),
    (
        "PreferredDuringSchedulingIgnoredDuringExecution",
        "preferredDuringSchedulingIgnoredDuringExecution",
        List(&[("Weight", "weight", Int), ("PodAffinityTerm", "podAffinityTerm", Object(POD_TERM))]),
    ),
];
const AFFINITY: Fields = &[
    (
        "NodeAffinity",
        "nodeAffinity",
        Pointer(&[
            (
                "RequiredDuringSchedulingIgnoredDuringExecution",
                "requiredDuringSchedulingIgnoredDuringExecution",
                Pointer(&[("NodeSelectorTerms", "nodeSelectorTerms", List(NODE_TERM))]),
            ),
            (
                "PreferredDuringSchedulingIgnoredDuringExecution",
                "preferredDuringSchedulingIgnoredDuringExecution",
                List(&[("Weight", "weight", Int), ("Preference", "preference", Object(NODE_TERM))]),
            ),
        ]),
    ),
    ("PodAffinity", "podAffinity", Pointer(POD_AFFINITY)),
    ("PodAntiAffinity", "podAntiAffinity", Pointer(POD_AFFINITY)),
];

const KEY_PATHS: Shape = List(&[("Key", "key", Text), ("Path", "path", Text), ("Mode", "mode", Nil)]);
const DOWNWARD_FILES: Shape = List(&[
    ("Path", "path", Text),
    ("FieldRef", "fieldRef", Pointer(FIELD)),
    ("ResourceFieldRef", "resourceFieldRef", Pointer(RESOURCE_FIELD)),
    ("Mode", "mode", Nil),
]);
const PROJECTED_KEYS: Fields = &[("Name", "name", Text), ("Items", "items", KEY_PATHS), ("Optional", "optional", Nil)];

const VOLUME: Fields = &[
    ("Name", "name", Text),
    ("HostPath", "hostPath", Pointer(&[("Path", "path", Text), ("Type", "type", Nil)])),
    ("EmptyDir", "emptyDir", Pointer(&[("Medium", "medium", Text), ("SizeLimit", "sizeLimit", Nil)])),
    ("GCEPersistentDisk", "gcePersistentDisk", Nil),
    ("AWSElasticBlockStore", "awsElasticBlockStore", Nil),
    ("GitRepo", "gitRepo", Nil),
    (
        "Secret",
        "secret",
        Pointer(&[
            ("SecretName", "secretName", Text),
            ("Items", "items", KEY_PATHS),
            ("DefaultMode", "defaultMode", Nil),
            ("Optional", "optional", Nil),
        ]),
    ),
    ("NFS", "nfs", Pointer(&[("Server", "server", Text), ("Path", "path", Text), ("ReadOnly", "readOnly", Bool)])),
    ("ISCSI", "iscsi", Nil),
    ("Glusterfs", "glusterfs", Nil),
    (
        "PersistentVolumeClaim",
        "persistentVolumeClaim",
        Pointer(&[("ClaimName", "claimName", Text), ("ReadOnly", "readOnly", Bool)]),
    ),
    ("RBD", "rbd", Nil),
    ("Quobyte", "quobyte", Nil),
    ("FlexVolume", "flexVolume", Nil),
    ("Cinder", "cinder", Nil),
    ("CephFS", "cephfs", Nil),
    ("Flocker", "flocker", Nil),
    ("DownwardAPI", "downwardAPI", Pointer(&[("Items", "items", DOWNWARD_FILES), ("DefaultMode", "defaultMode", Nil)])),
    ("FC", "fc", Nil),
    ("AzureFile", "azureFile", Nil),
    (
        "ConfigMap",
        "configMap",
        Pointer(&[
            ("Name", "name", Text),
            ("Items", "items", KEY_PATHS),
            ("DefaultMode", "defaultMode", Nil),
            ("Optional", "optional", Nil),
        ]),
    ),
    ("VsphereVolume", "vsphereVolume", Nil),
    ("AzureDisk", "azureDisk", Nil),
    ("PhotonPersistentDisk", "photonPersistentDisk", Nil),
    (
        "Projected",
        "projected",
        Pointer(&[
            (
                "Sources",
                "sources",
                List(&[
                    ("Secret", "secret", Pointer(PROJECTED_KEYS)),
                    ("DownwardAPI", "downwardAPI", Pointer(&[("Items", "items", DOWNWARD_FILES)])),
                    ("ConfigMap", "configMap", Pointer(PROJECTED_KEYS)),
                    (
                        "ServiceAccountToken",
                        "serviceAccountToken",
                        Pointer(&[
                            ("Audience", "audience", Text),
                            ("ExpirationSeconds", "expirationSeconds", Int),
                            ("Path", "path", Text),
                        ]),
                    ),
                    ("ClusterTrustBundle", "clusterTrustBundle", Nil),
                    ("PodCertificate", "podCertificate", Nil),
                ]),
            ),
            ("DefaultMode", "defaultMode", Nil),
        ]),
    ),
    ("PortworxVolume", "portworxVolume", Nil),
    ("ScaleIO", "scaleIO", Nil),
    ("StorageOS", "storageos", Nil),
    ("CSI", "csi", Nil),
    ("Ephemeral", "ephemeral", Nil),
    ("Image", "image", Pointer(&[("Reference", "reference", Text), ("PullPolicy", "pullPolicy", Text)])),
];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn zero_values_are_printed() {
        assert_eq!(
            value(DEPLOYMENT_STRATEGY, &json!({"type": "X"})).to_string(),
            "{\"Type\":\"X\",\"RollingUpdate\":null}"
        );
    }

    #[test]
    fn host_namespaces_are_in_the_security_context() {
        let shown = pod_spec(&json!({"hostNetwork": true, "securityContext": {}}));
        assert_eq!(shown["SecurityContext"]["HostNetwork"], true);
        assert_eq!(shown["SecurityContext"]["HostPID"], false);
    }
}
