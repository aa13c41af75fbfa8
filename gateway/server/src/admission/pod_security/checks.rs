//! What the levels of Pod security forbid: a table of checks, each with the words of its refusal.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{Level, LevelVersion};
use crate::objects::text;

/// One thing that is not allowed: what, and where.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Finding {
    pub reason: String,
    pub detail: String,
}

/// A Pod, or a template of Pods.
pub(super) struct Subject<'a> {
    pub metadata: &'a Value,
    pub spec: &'a Value,
}

/// What a check looks at: the Pod, and the minor version of the policy.
type Run = fn(&Subject<'_>, u32) -> Option<Finding>;

struct Check {
    level: Level,
    /// The minor version from which on it exists.
    since: u32,
    /// The name of the check that it takes the place of.
    replaces: &'static str,
    name: &'static str,
    run: Run,
}

const fn baseline(name: &'static str, since: u32, run: Run) -> Check {
    Check { level: Level::Baseline, since, replaces: "", name, run }
}

const fn restricted(name: &'static str, since: u32, replaces: &'static str, run: Run) -> Check {
    Check { level: Level::Restricted, since, replaces, name, run }
}

/// In the order of refusals.
const CHECKS: [Check; 19] = [
    baseline("appArmorProfile", 0, app_armor),
    baseline("capabilities_baseline", 0, capabilities_baseline),
    baseline("hostNamespaces", 0, host_namespaces),
    baseline("hostPathVolumes", 0, host_paths),
    baseline("hostPorts", 0, host_ports),
    baseline("hostProbesAndHostLifecycle", 34, probe_hosts),
    baseline("privileged", 0, privileged),
    baseline("procMount", 0, proc_mount_baseline),
    baseline("seLinuxOptions", 0, se_linux),
    baseline("seccompProfile_baseline", 0, seccomp_baseline),
    baseline("sysctls", 0, sysctls),
    baseline("windowsHostProcess", 0, host_process),
    restricted("allowPrivilegeEscalation", 8, "", privilege_escalation),
    restricted("capabilities_restricted", 22, "capabilities_baseline", capabilities_restricted),
    restricted("procMount_restricted", 35, "procMount", |pod, _| proc_mount(pod)),
    restricted("restrictedVolumes", 0, "hostPathVolumes", volume_types),
    restricted("runAsNonRoot", 0, "", non_root),
    restricted("runAsUser", 23, "", user),
    restricted("seccompProfile_restricted", 19, "seccompProfile_baseline", seccomp_restricted),
];

/// What a level forbids of a Pod.
pub(super) fn evaluate(policy: LevelVersion, pod: &Subject<'_>) -> Vec<Finding> {
    let minor = policy.version.minor();
    let applies = |check: &&Check| check.level <= policy.level && check.since <= minor;
    let replaced: Vec<&str> = CHECKS.iter().filter(applies).map(|check| check.replaces).collect();
    let checks = CHECKS.iter().filter(applies).filter(|check| !replaced.contains(&check.name));
    checks.filter_map(|check| (check.run)(pod, minor)).collect()
}

#[expect(clippy::unnecessary_wraps, reason = "it is what checks end with")]
fn finding(reason: impl Into<String>, detail: impl Into<String>) -> Option<Finding> {
    Some(Finding { reason: reason.into(), detail: detail.into() })
}

/// Who does something wrong: the Pod itself, and containers by name.
#[derive(Default)]
struct Culprits {
    pod: bool,
    containers: Vec<String>,
}

impl Culprits {
    fn is_empty(&self) -> bool {
        !self.pod && self.containers.is_empty()
    }

    /// `pod and container "a"`
    fn shown(&self) -> Vec<String> {
        let mut shown = Vec::new();
        if self.pod {
            shown.push("pod".to_owned());
        }
        if !self.containers.is_empty() {
            shown.push(containers(&self.containers));
        }
        shown
    }
}

fn several<'a>(one: &'a str, more: &'a str, count: usize) -> &'a str {
    if count == 1 { one } else { more }
}

fn quoted<'a>(items: impl IntoIterator<Item = &'a String>) -> String {
    items.into_iter().map(|item| format!("\"{item}\"")).collect::<Vec<_>>().join(", ")
}

/// `container "a"`, `containers "a", "b"`
fn containers(names: &[String]) -> String {
    format!("{} {}", several("container", "containers", names.len()), quoted(names))
}

impl Subject<'_> {
    /// All containers: first those that run before the others.
    fn containers(&self) -> impl Iterator<Item = &Value> {
        let lists = ["initContainers", "containers", "ephemeralContainers"];
        lists.into_iter().flat_map(|list| self.spec.get(list).and_then(Value::as_array).into_iter().flatten())
    }

    /// The names of the containers that a test meets.
    fn containers_that(&self, mut test: impl FnMut(&Value) -> bool) -> Vec<String> {
        self.containers().filter(|one| test(one)).map(|one| text(one, "/name").to_owned()).collect()
    }

    fn volumes(&self) -> impl Iterator<Item = &Value> {
        self.spec.get("volumes").and_then(Value::as_array).into_iter().flatten()
    }

    fn annotations(&self) -> impl Iterator<Item = (&String, &str)> {
        let annotations = self.metadata.get("annotations").and_then(Value::as_object).into_iter().flatten();
        annotations.map(|(key, value)| (key, value.as_str().unwrap_or_default()))
    }

    fn is_windows(&self) -> bool {
        text(self.spec, "/os/name") == "windows"
    }

    /// Whether the Pod has users of its own: then root inside is nobody outside.
    fn has_own_users(&self) -> bool {
        self.spec.get("hostUsers") == Some(&Value::Bool(false))
    }
}

/// A list of texts at a pointer.
fn texts<'a>(value: &'a Value, pointer: &str) -> Vec<&'a str> {
    value.pointer(pointer).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}

fn is_true(value: &Value, pointer: &str) -> bool {
    value.pointer(pointer) == Some(&Value::Bool(true))
}

const APP_ARMOR: &str = "container.apparmor.security.beta.kubernetes.io/";

fn app_armor(pod: &Subject<'_>, _: u32) -> Option<Finding> {
    let mut bad = BTreeSet::new();
    let mut is_bad = |holder: &Value| {
        let kind = holder.pointer("/securityContext/appArmorProfile/type").and_then(Value::as_str);
        let kind = kind.filter(|kind| !matches!(*kind, "RuntimeDefault" | "Localhost"));
        bad.extend(kind.map(str::to_owned));
        kind.is_some()
    };
    let culprits = Culprits { pod: is_bad(pod.spec), containers: pod.containers_that(is_bad) };
    let allowed = |value: &str| matches!(value, "" | "runtime/default") || value.starts_with("localhost/");
    let annotations = pod.annotations().filter(|(key, value)| key.starts_with(APP_ARMOR) && !allowed(value));
    let annotations: BTreeSet<String> = annotations.map(|(key, value)| format!("{key}={value:?}")).collect();
    let mut setters = culprits.shown();
    if !annotations.is_empty() {
        setters.push(several("annotation", "annotations", annotations.len()).to_owned());
    }
    if setters.is_empty() {
        return None;
    }
    let values: Vec<String> = bad.into_iter().chain(annotations).collect();
    let reason = several("forbidden AppArmor profile", "forbidden AppArmor profiles", values.len());
    finding(reason, format!("{} must not set AppArmor profile type to {}", setters.join(" and "), quoted(&values)))
}

const DEFAULT_CAPABILITIES: [&str; 13] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Containers that add other capabilities than these, and which.
fn adders(pod: &Subject<'_>, allowed: &[&str]) -> (Vec<String>, BTreeSet<String>) {
    let mut added = BTreeSet::new();
    let bad = pod.containers_that(|container| {
        let more = texts(container, "/securityContext/capabilities/add");
        let more: Vec<&str> = more.into_iter().filter(|one| !allowed.contains(one)).collect();
        added.extend(more.iter().map(ToString::to_string));
        !more.is_empty()
    });
    (bad, added)
}

fn capabilities_baseline(pod: &Subject<'_>, _: u32) -> Option<Finding> {
    let (bad, added) = adders(pod, &DEFAULT_CAPABILITIES);
    if bad.is_empty() {
        return None;
    }
    finding(
        "non-default capabilities",
        format!("{} must not include {} in securityContext.capabilities.add", containers(&bad), quoted(&added)),
    )
}

fn capabilities_restricted(pod: &Subject<'_>, minor: u32) -> Option<Finding> {
    if minor >= 25 && pod.is_windows() {
        return None;
    }
    let keeping =
        pod.containers_that(|container| !texts(container, "/securityContext/capabilities/drop").contains(&"ALL"));
    let (adding, added) = adders(pod, &["NET_BIND_SERVICE"]);
    let mut details = Vec::new();
    if !keeping.is_empty() {
        details.push(format!("{} must set securityContext.capabilities.drop=[\"ALL\"]", containers(&keeping)));
    }
    if !adding.is_empty() {
        let who = containers(&adding);
        details.push(format!("{who} must not include {} in securityContext.capabilities.add", quoted(&added)));
    }
    if details.is_empty() {
        return None;
    }
    finding("unrestricted capabilities", details.join("; "))
}

fn host_namespaces(pod: &Subject<'_>, _: u32) -> Option<Finding> {
    let fields = ["hostNetwork", "hostPID", "hostIPC"];
    let used = fields.iter().filter(|field| pod.spec.get(**field) == Some(&Value::Bool(true)));
    let used: Vec<String> = used.map(|field| format!("{field}=true")).collect();
    if used.is_empty() { None } else { finding("host namespaces", used.join(", ")) }
}

fn host_paths(pod: &Subject<'_>, _: u32) -> Option<Finding> {
    let bad = pod.volumes().filter(|volume| volume.get("hostPath").is_some_and(|source| !source.is_null()));
    let bad: Vec<String> = bad.map(|volume| text(volume, "/name").to_owned()).collect();
    if bad.is_empty() {
        return None;
    }
    finding("hostPath volumes", format!("{} {}", several("volume", "volumes", bad.len()), quoted(&bad)))
}

fn host_ports(pod: &Subject<'_>, _: u32) -> Option<Finding> {
    let mut ports = BTreeSet::new();
    let bad = pod.containers_that(|container| {
        let listed = container.get("ports").and_then(Value::as_array).into_iter().flatten();
        let taken = listed.filter_map(|port| port.get("hostPort").and_then(Value::as_i64)).filter(|port| *port != 0);
        let taken: Vec<String> = taken.map(|port| port.to_string()).collect();
        let any = !taken.is_empty();
        ports.extend(taken);
        any
    });
    if bad.is_empty() {
        return None;
    }
    let (use_, port) = (several("uses", "use", bad.len()), several("hostPort", "hostPorts", ports.len()));
    let ports: Vec<String> = ports.into_iter().collect();
    finding("hostPort", format!("{} {use_} {port} {}", containers(&bad), ports.join(", ")))
}

fn probe_hosts(pod: &Subject<'_>, _: u32) -> Option<Finding> {
    const HANDLERS: [&str; 5] =
        ["/livenessProbe", "/readinessProbe", "/startupProbe", "/lifecycle/postStart", "/lifecycle/preStop"];
    let mut hosts = BTreeSet::new();
    let bad = pod.containers_that(|container| {
        let found = HANDLERS
            .iter()
            .filter_map(|handler| container.pointer(handler))
            .flat_map(|handler| [text(handler, "/httpGet/host"), text(handler, "/tcpSocket/host")]);
        let found: Vec<String> = found.filter(|host| !host.is_empty()).map(str::to_owned).collect();
        let any = !found.is_empty();
        hosts.extend(found);
        any
    });
    if bad.is_empty() {
        return None;
    }
    // Named in their order here, unlike by the other checks.
    let bad: BTreeSet<String> = bad.into_iter().collect();
    let bad: Vec<String> = bad.into_iter().collect();
    let use_ = several("uses", "use", bad.len());
    let what = several("probe or lifecycle host", "probe or lifecycle hosts", hosts.len());
    finding("probe or lifecycle host", format!("{} {use_} {what} {}", containers(&bad), quoted(&hosts)))
}

fn privileged(pod: &Subject<'_>, _: u32) -> Option<Finding> {
    let bad = pod.containers_that(|container| is_true(container, "/securityContext/privileged"));
    if bad.is_empty() {
        return None;
    }
    finding("privileged", format!("{} must not set securityContext.privileged=true", containers(&bad)))
}

fn proc_mount_baseline(pod: &Subject<'_>, minor: u32) -> Option<Finding> {
    if minor >= 35 && pod.has_own_users() { None } else { proc_mount(pod) }
}

fn proc_mount(pod: &Subject<'_>) -> Option<Finding> {
    let mut kinds = BTreeSet::new();
    let bad = pod.containers_that(|container| {
        let kind = container.pointer("/securityContext/procMount").and_then(Value::as_str);
        let kind = kind.filter(|kind| *kind != "Default");
        kinds.extend(kind.map(str::to_owned));
        kind.is_some()
    });
    if bad.is_empty() {
        return None;
    }
    finding("procMount", format!("{} must not set securityContext.procMount to {}", containers(&bad), quoted(&kinds)))
}

fn se_linux(pod: &Subject<'_>, minor: u32) -> Option<Finding> {
    let (mut types, mut user, mut role) = (BTreeSet::new(), false, false);
    let mut is_bad = |holder: &Value| {
        let Some(options) = holder.pointer("/securityContext/seLinuxOptions").filter(|value| !value.is_null()) else {
            return false;
        };
        let kind = text(options, "/type");
        let allowed = matches!(kind, "" | "container_t" | "container_init_t" | "container_kvm_t")
            || minor >= 31 && kind == "container_engine_t";
        if !allowed {
            types.insert(kind.to_owned());
        }
        let (has_user, has_role) = (!text(options, "/user").is_empty(), !text(options, "/role").is_empty());
        user |= has_user;
        role |= has_role;
        !allowed || has_user || has_role
    };
    let culprits = Culprits { pod: is_bad(pod.spec), containers: pod.containers_that(is_bad) };
    if culprits.is_empty() {
        return None;
    }
    let mut data = Vec::new();
    if !types.is_empty() {
        data.push(format!("{} {}", several("type", "types", types.len()), quoted(&types)));
    }
    if user {
        data.push("user may not be set".to_owned());
    }
    if role {
        data.push("role may not be set".to_owned());
    }
    let who = culprits.shown().join(" and ");
    finding("seLinuxOptions", format!("{who} set forbidden securityContext.seLinuxOptions: {}", data.join("; ")))
}

const SECCOMP_POD: &str = "seccomp.security.alpha.kubernetes.io/pod";
const SECCOMP_CONTAINER: &str = "container.seccomp.security.alpha.kubernetes.io/";

fn seccomp_baseline(pod: &Subject<'_>, minor: u32) -> Option<Finding> {
    if minor >= 19 {
        return seccomp_set(pod);
    }
    let allowed =
        |value: &str| matches!(value, "runtime/default" | "docker/default") || value.starts_with("localhost/");
    let names: Vec<String> = pod.containers().map(|one| format!("{SECCOMP_CONTAINER}{}", text(one, "/name"))).collect();
    let bad = pod
        .annotations()
        .filter(|(key, value)| (key.as_str() == SECCOMP_POD || names.contains(key)) && !allowed(value));
    let bad: BTreeSet<String> = bad.map(|(key, value)| format!("{key}={value:?}")).collect();
    if bad.is_empty() {
        return None;
    }
    let bad: Vec<String> = bad.into_iter().collect();
    let what = several("annotation", "annotations", bad.len());
    finding("seccompProfile", format!("forbidden {what} {}", bad.join(", ")))
}

const SECCOMP_TYPE: &str = "/securityContext/seccompProfile/type";

fn has_seccomp(holder: &Value) -> bool {
    holder.pointer("/securityContext/seccompProfile").is_some_and(|profile| !profile.is_null())
}

fn is_seccomp_allowed(holder: &Value) -> bool {
    matches!(text(holder, SECCOMP_TYPE), "RuntimeDefault" | "Localhost")
}

/// Profiles that are set to something that is not allowed.
fn seccomp_set(pod: &Subject<'_>) -> Option<Finding> {
    let mut values = BTreeSet::new();
    let mut is_bad = |holder: &Value| {
        let bad = has_seccomp(holder) && !is_seccomp_allowed(holder);
        if bad {
            values.insert(text(holder, SECCOMP_TYPE).to_owned());
        }
        bad
    };
    let culprits = Culprits { pod: is_bad(pod.spec), containers: pod.containers_that(is_bad) };
    if culprits.is_empty() {
        return None;
    }
    let who = culprits.shown().join(" and ");
    finding("seccompProfile", format!("{who} must not set securityContext.seccompProfile.type to {}", quoted(&values)))
}

fn seccomp_restricted(pod: &Subject<'_>, minor: u32) -> Option<Finding> {
    if minor >= 25 && pod.is_windows() {
        return None;
    }
    if let Some(set) = seccomp_set(pod) {
        return Some(set);
    }
    let of_pod = has_seccomp(pod.spec) && is_seccomp_allowed(pod.spec);
    let lacking = pod.containers_that(|container| !has_seccomp(container) && !of_pod);
    if lacking.is_empty() {
        return None;
    }
    finding(
        "seccompProfile",
        format!(
            "pod or {} must set securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\"",
            containers(&lacking)
        ),
    )
}

/// Settings of the kernel that are a Pod's own, and the minor version that allows them.
const SYSCTLS: [(&str, u32); 12] = [
    ("kernel.shm_rmid_forced", 0),
    ("net.ipv4.ip_local_port_range", 0),
    ("net.ipv4.tcp_syncookies", 0),
    ("net.ipv4.ping_group_range", 0),
    ("net.ipv4.ip_unprivileged_port_start", 0),
    ("net.ipv4.ip_local_reserved_ports", 27),
    ("net.ipv4.tcp_keepalive_time", 29),
    ("net.ipv4.tcp_fin_timeout", 29),
    ("net.ipv4.tcp_keepalive_intvl", 29),
    ("net.ipv4.tcp_keepalive_probes", 29),
    ("net.ipv4.tcp_rmem", 32),
    ("net.ipv4.tcp_wmem", 32),
];

fn sysctls(pod: &Subject<'_>, minor: u32) -> Option<Finding> {
    let allowed = |name: &str| SYSCTLS.iter().any(|(known, since)| *known == name && *since <= minor);
    let set = pod.spec.pointer("/securityContext/sysctls").and_then(Value::as_array).into_iter().flatten();
    let bad: Vec<&str> = set.map(|one| text(one, "/name")).filter(|name| !allowed(name)).collect();
    if bad.is_empty() { None } else { finding("forbidden sysctls", bad.join(", ")) }
}

fn host_process(pod: &Subject<'_>, _: u32) -> Option<Finding> {
    let is_bad = |holder: &Value| is_true(holder, "/securityContext/windowsOptions/hostProcess");
    let culprits = Culprits { pod: is_bad(pod.spec), containers: pod.containers_that(is_bad) };
    if culprits.is_empty() {
        return None;
    }
    let who = culprits.shown().join(" and ");
    finding("hostProcess", format!("{who} must not set securityContext.windowsOptions.hostProcess=true"))
}

fn privilege_escalation(pod: &Subject<'_>, minor: u32) -> Option<Finding> {
    if minor >= 25 && pod.is_windows() {
        return None;
    }
    let bad = pod.containers_that(|container| {
        container.pointer("/securityContext/allowPrivilegeEscalation") != Some(&Value::Bool(false))
    });
    if bad.is_empty() {
        return None;
    }
    finding(
        "allowPrivilegeEscalation != false",
        format!("{} must set securityContext.allowPrivilegeEscalation=false", containers(&bad)),
    )
}

/// Sources of volumes that lead to nothing of the node's.
const SAFE_VOLUMES: [&str; 9] = [
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
];

fn volume_types(pod: &Subject<'_>, _: u32) -> Option<Finding> {
    let (mut names, mut types) = (Vec::new(), BTreeSet::new());
    for volume in pod.volumes() {
        let source = volume.as_object().into_iter().flatten().find(|(key, value)| *key != "name" && !value.is_null());
        let source = source.map_or("unknown", |(key, _)| key.as_str());
        if !SAFE_VOLUMES.contains(&source) {
            names.push(text(volume, "/name").to_owned());
            types.insert(source.to_owned());
        }
    }
    if names.is_empty() {
        return None;
    }
    let (volume, use_) = (several("volume", "volumes", names.len()), several("uses", "use", names.len()));
    let kind = several("restricted volume type", "restricted volume types", types.len());
    finding("restricted volume types", format!("{volume} {} {use_} {kind} {}", quoted(&names), quoted(&types)))
}

fn non_root(pod: &Subject<'_>, minor: u32) -> Option<Finding> {
    const FIELD: &str = "/securityContext/runAsNonRoot";
    if minor >= 35 && pod.has_own_users() {
        return None;
    }
    let is_bad = |holder: &Value| holder.pointer(FIELD) == Some(&Value::Bool(false));
    let culprits = Culprits { pod: is_bad(pod.spec), containers: pod.containers_that(is_bad) };
    if !culprits.is_empty() {
        let who = culprits.shown().join(" and ");
        return finding("runAsNonRoot != true", format!("{who} must not set securityContext.runAsNonRoot=false"));
    }
    let of_pod = is_true(pod.spec, FIELD);
    let lacking = pod.containers_that(|container| !is_true(container, FIELD) && !of_pod);
    if lacking.is_empty() {
        return None;
    }
    finding(
        "runAsNonRoot != true",
        format!("pod or {} must set securityContext.runAsNonRoot=true", containers(&lacking)),
    )
}

fn user(pod: &Subject<'_>, minor: u32) -> Option<Finding> {
    if minor >= 35 && pod.has_own_users() {
        return None;
    }
    let is_bad = |holder: &Value| holder.pointer("/securityContext/runAsUser").and_then(Value::as_i64) == Some(0);
    let culprits = Culprits { pod: is_bad(pod.spec), containers: pod.containers_that(is_bad) };
    if culprits.is_empty() {
        return None;
    }
    finding("runAsUser=0", format!("{} must not set runAsUser=0", culprits.shown().join(" and ")))
}
