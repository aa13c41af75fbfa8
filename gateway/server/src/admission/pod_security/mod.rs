//! Pod security (`PodSecurity`): a namespace's labels say what its Pods may be, and for whom there are warnings.

mod checks;

use std::collections::BTreeMap;
use std::fmt;

use carob_api::field::{ErrorList, Path};
use carob_api::status::Status;
use carob_store::KeyRange;
use serde_json::Value;

use super::{Operation, Request};
use crate::call::Call;
use crate::objects::{self, store_failure, text};
use crate::settings::{self, PodSecuritySettings};
use checks::{Finding, Subject};

/// How many Pods of a namespace are looked at when it becomes stricter.
const MOST_PODS: usize = 3000;
const PREFIX: &str = "pod-security.kubernetes.io/";

/// How strict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Privileged,
    Baseline,
    Restricted,
}

/// As of which version of Kubernetes: the minor number, none for the latest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version(Option<u32>);

/// The minor version of Kubernetes whose policies are known.
const LATEST: u32 = 35;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LevelVersion {
    level: Level,
    version: Version,
}

/// What a namespace asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Policy {
    enforce: LevelVersion,
    audit: LevelVersion,
    warn: LevelVersion,
}

impl Level {
    fn parse(text: &str) -> Result<Self, &'static str> {
        match text {
            "privileged" => Ok(Self::Privileged),
            "baseline" => Ok(Self::Baseline),
            "restricted" => Ok(Self::Restricted),
            _ => Err("must be one of privileged, baseline, restricted"),
        }
    }
}

impl Version {
    fn parse(text: &str) -> Result<Self, &'static str> {
        if text == "latest" {
            return Ok(Self(None));
        }
        let number = text.strip_prefix("v1.").filter(|number| *number == "0" || !number.starts_with(['0', '+']));
        number
            .and_then(|number| number.parse().ok())
            .map(|minor| Self(Some(minor)))
            .ok_or("must be \"latest\" or \"v1.x\"")
    }

    fn minor(self) -> u32 {
        self.0.map_or(LATEST, |minor| minor.min(LATEST))
    }
}

impl fmt::Display for LevelVersion {
    /// `restricted:latest`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        })?;
        match self.version.0 {
            Some(minor) => write!(f, ":v1.{minor}"),
            None => f.write_str(":latest"),
        }
    }
}

/// What holds where labels say nothing, and who is exempt.
pub(crate) struct Configuration {
    defaults: Policy,
    settings: PodSecuritySettings,
}

impl Configuration {
    /// As the settings have it.
    pub fn new(settings: &PodSecuritySettings) -> Result<Self, settings::Error> {
        let free = LevelVersion { level: Level::Privileged, version: Version(None) };
        let none = Policy { enforce: free, audit: free, warn: free };
        let (defaults, errors) = read(&settings.defaults, none, "");
        if let Some((key, _, why)) = errors.first() {
            return Err(settings::Error::Invalid { what: format!("podSecurity.defaults.{key}"), why: why.to_owned() });
        }
        Ok(Self { defaults, settings: settings.clone() })
    }

    fn of_labels(&self, labels: Option<&Value>) -> (Policy, Vec<Mistake>) {
        let labels = labels.and_then(Value::as_object).into_iter().flatten();
        let labels = labels.filter(|(key, _)| key.starts_with(PREFIX));
        let labels = labels.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect();
        read(&labels, self.defaults, PREFIX)
    }
}

/// A label, its value, and what would be right.
type Mistake = (String, String, String);

/// The policy of labels, as far as they can be understood, and those that can't.
fn read(labels: &BTreeMap<String, String>, defaults: Policy, prefix: &str) -> (Policy, Vec<Mistake>) {
    let mut policy = defaults;
    let mut mistakes = Vec::new();
    let mut has_level = false;
    for (mode, what) in [("enforce", &mut policy.enforce), ("audit", &mut policy.audit), ("warn", &mut policy.warn)] {
        let key = format!("{prefix}{mode}");
        if let Some(value) = labels.get(&key) {
            match Level::parse(value) {
                Ok(level) => {
                    what.level = level;
                    has_level |= mode == "enforce";
                }
                Err(why) => {
                    // What refuses is as strict as can be, what only speaks is silent.
                    what.level = if mode == "enforce" { Level::Restricted } else { Level::Privileged };
                    mistakes.push((key.clone(), value.clone(), why.to_owned()));
                }
            }
        }
        let key = format!("{prefix}{mode}-version");
        if let Some(value) = labels.get(&key) {
            what.version = Version::parse(value).unwrap_or_else(|why| {
                mistakes.push((key.clone(), value.clone(), why.to_owned()));
                Version(None)
            });
        }
    }
    // Who refuses Pods warns of their templates too.
    let says = |key: &str| labels.contains_key(&format!("{prefix}{key}"));
    if has_level && !says("warn") && policy.enforce.level > policy.warn.level {
        policy.warn.level = policy.enforce.level;
        if !says("warn-version") {
            policy.warn.version = policy.enforce.version;
        }
    }
    (policy, mistakes)
}

/// Asks of Pods, of what makes Pods, and of namespaces what their namespace demands.
pub(super) async fn admit(request: &Request<'_>) -> Result<(), Status> {
    let call = request.call;
    match (call.kind.group, call.kind.plural) {
        ("", "namespaces") => namespace(request).await,
        ("", "pods") => pod(request).await,
        _ => template(request).await,
    }
}

/// Where the templates of Pods are.
fn template_of(object: &Value) -> Option<&Value> {
    let pointers = ["/spec/jobTemplate/spec/template", "/spec/template", "/template"];
    pointers.iter().find_map(|pointer| object.pointer(pointer)).filter(|template| template.is_object())
}

async fn policy(call: &Call) -> Result<(Policy, Vec<Mistake>), Status> {
    let namespace = call.namespace.as_deref().unwrap_or_default();
    let key = objects::core_key("namespaces", None, namespace);
    let entry = call.server.store.get(&key).await.map_err(|error| store_failure(&error))?;
    let Some(entry) = entry else {
        return Err(Status::internal(format!("failed to lookup namespace {namespace:?}")));
    };
    let found = call.server.decoded.get(&entry)?;
    Ok(call.server.pod_security.of_labels(found.pointer("/metadata/labels")))
}

fn is_exempt(call: &Call, spec: &Value) -> bool {
    let exempt = &call.server.pod_security.settings.exemptions;
    let namespace = call.namespace.as_deref().unwrap_or_default();
    let class = text(spec, "/runtimeClassName");
    exempt.namespaces.iter().any(|one| one == namespace)
        || exempt.usernames.contains(&call.identity.user)
        || !class.is_empty() && exempt.runtime_classes.iter().any(|one| one == class)
}

async fn pod(request: &Request<'_>) -> Result<(), Status> {
    let call = request.call;
    if request.old.is_some_and(|old| !is_significant(&request.object, old)) {
        return Ok(());
    }
    let spec = request.object.get("spec").unwrap_or(&Value::Null);
    if is_exempt(call, spec) {
        return Ok(());
    }
    let (policy, mistakes) = policy(call).await?;
    let subject = Subject { metadata: request.object.get("metadata").unwrap_or(&Value::Null), spec };
    let findings = checks::evaluate(policy.enforce, &subject);
    call.annotate("pod-security.kubernetes.io/enforce-policy", || policy.enforce.to_string());
    speak(call, policy, &subject, &mistakes, findings.is_empty());
    if findings.is_empty() {
        return Ok(());
    }
    let why = format!("violates PodSecurity \"{}\": {}", policy.enforce, detail(&findings));
    Err(Status::forbidden(&call.resource(), &request.name, why))
}

async fn template(request: &Request<'_>) -> Result<(), Status> {
    let Some(template) = template_of(&request.object) else { return Ok(()) };
    let spec = template.get("spec").unwrap_or(&Value::Null);
    if is_exempt(request.call, spec) {
        return Ok(());
    }
    let (policy, mistakes) = policy(request.call).await?;
    let subject = Subject { metadata: template.get("metadata").unwrap_or(&Value::Null), spec };
    speak(request.call, policy, &subject, &mistakes, true);
    Ok(())
}

/// Notes what the namespace wants audited, and warns.
fn speak(call: &Call, policy: Policy, subject: &Subject<'_>, mistakes: &[Mistake], warn: bool) {
    if !mistakes.is_empty() {
        call.annotate("pod-security.kubernetes.io/error", || format!("Failed to parse policy: {}", shown(mistakes)));
    }
    let would = |policy: LevelVersion| {
        let findings = checks::evaluate(policy, subject);
        (!findings.is_empty()).then(|| format!("would violate PodSecurity \"{policy}\": {}", detail(&findings)))
    };
    if let Some(violation) = would(policy.audit) {
        call.annotate("pod-security.kubernetes.io/audit-violations", || violation);
    }
    if let Some(violation) = would(policy.warn).filter(|_| warn) {
        call.warn(violation);
    }
}

fn detail(findings: &[Finding]) -> String {
    let shown = findings.iter().map(|Finding { reason, detail }| format!("{reason} ({detail})"));
    shown.collect::<Vec<_>>().join(", ")
}

fn errors(mistakes: &[Mistake]) -> ErrorList {
    let path = Path::new("metadata").child("labels");
    mistakes.iter().map(|(key, value, why)| path.key(key).invalid(value.as_str(), why)).collect()
}

fn shown(mistakes: &[Mistake]) -> String {
    let texts: Vec<String> = errors(mistakes).iter().map(ToString::to_string).collect();
    match texts.as_slice() {
        [one] => one.clone(),
        several => format!("[{}]", several.join(", ")),
    }
}

/// Whether an update brings something that wasn't judged yet: a container or another image.
fn is_significant(pod: &Value, old: &Value) -> bool {
    let list =
        |pod: &'_ Value, name: &str| pod["spec"].get(name).and_then(Value::as_array).cloned().unwrap_or_default();
    for name in ["containers", "initContainers"] {
        let (now, before) = (list(pod, name), list(old, name));
        if now.len() != before.len() || now.iter().zip(&before).any(|(new, old)| new["image"] != old["image"]) {
            return true;
        }
    }
    let before = list(old, "ephemeralContainers");
    list(pod, "ephemeralContainers")
        .iter()
        .any(|new| before.iter().find(|old| old["name"] == new["name"]).is_none_or(|old| old["image"] != new["image"]))
}

async fn namespace(request: &Request<'_>) -> Result<(), Status> {
    let call = request.call;
    let configuration = &call.server.pod_security;
    let (policy, mistakes) = configuration.of_labels(request.object.pointer("/metadata/labels"));
    let old = request.old.map(|old| configuration.of_labels(old.pointer("/metadata/labels")));
    if !mistakes.is_empty() && old.as_ref().is_none_or(|(_, before)| *before != mistakes) {
        return Err(Status::invalid((call.kind.group, call.kind.kind), &request.name, errors(&mistakes)));
    }
    let Some((before, _)) = old.filter(|_| request.operation == Operation::Update) else { return Ok(()) };
    let (now, before) = (policy.enforce, before.enforce);
    let stricter = now != before
        && now.level != Level::Privileged
        && (now.version != before.version || now.level > before.level)
        && !configuration.settings.exemptions.namespaces.contains(&request.name);
    if stricter {
        for warning in warnings(call, &request.name, now).await? {
            call.warn(warning);
        }
    }
    Ok(())
}

/// What of a namespace's Pods a new level would not let in.
async fn warnings(call: &Call, namespace: &str, enforce: LevelVersion) -> Result<Vec<String>, Status> {
    let range = KeyRange::prefix(format!("/core/pods/{namespace}/"));
    let page = call.server.store.range(&range, Some(MOST_PODS), None).await.map_err(|error| store_failure(&error))?;
    // By what is wrong: the first Pod's name, and how many there are.
    let mut found: BTreeMap<String, (String, usize)> = BTreeMap::new();
    for entry in &page.entries {
        let pod = objects::decode(&entry.value)?;
        let spec = pod.get("spec").unwrap_or(&Value::Null);
        if is_exempt(call, spec) {
            continue;
        }
        let findings = checks::evaluate(enforce, &Subject { metadata: &pod["metadata"], spec });
        if !findings.is_empty() {
            let reasons: Vec<&str> = findings.iter().map(|finding| finding.reason.as_str()).collect();
            let name = text(&pod, "/metadata/name");
            let first = found.entry(reasons.join(", ")).or_insert_with(|| (name.to_owned(), 0));
            first.1 += 1;
        }
    }
    let mut warnings = Vec::new();
    if page.remaining > 0 {
        let (checked, all) = (page.entries.len(), page.entries.len() as u64 + page.remaining);
        warnings.push(format!(
            "new PodSecurity enforce level only checked against the first {checked} of {all} existing pods"
        ));
    }
    if !found.is_empty() {
        warnings.push(format!(
            "existing pods in namespace {namespace:?} violate the new PodSecurity enforce level \"{enforce}\""
        ));
    }
    let mut pods: Vec<String> = found
        .into_iter()
        .map(|(reasons, (name, count))| match count {
            1 => format!("{name}: {reasons}"),
            2 => format!("{name} (and 1 other pod): {reasons}"),
            more => format!("{name} (and {} other pods): {reasons}", more - 1),
        })
        .collect();
    pods.sort_unstable();
    warnings.extend(pods);
    Ok(warnings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn violations(policy: &str, spec: &Value) -> String {
        let (level, version) = policy.split_once(':').expect("level:version");
        let level = Level::parse(level).expect("a level");
        let version = Version::parse(version).expect("a version");
        detail(&checks::evaluate(LevelVersion { level, version }, &Subject { metadata: &json!({}), spec }))
    }

    #[test]
    fn a_plain_pod_is_fine_for_baseline_and_lacks_four_things_for_restricted() {
        let plain = json!({"containers": [{"name": "c", "image": "i"}]});
        assert_eq!(violations("baseline:latest", &plain), "");
        assert_eq!(
            violations("restricted:latest", &plain),
            "allowPrivilegeEscalation != false (container \"c\" must set \
             securityContext.allowPrivilegeEscalation=false), unrestricted capabilities (container \"c\" must set \
             securityContext.capabilities.drop=[\"ALL\"]), runAsNonRoot != true (pod or container \"c\" must set \
             securityContext.runAsNonRoot=true), seccompProfile (pod or container \"c\" must set \
             securityContext.seccompProfile.type to \"RuntimeDefault\" or \"Localhost\")"
        );
        assert_eq!(violations("privileged:latest", &json!({"hostPID": true})), "");
    }

    #[test]
    fn what_reaches_the_host_is_not_for_baseline() {
        let spec = json!({
            "hostNetwork": true, "hostIPC": true,
            "securityContext": {"sysctls": [{"name": "kernel.msgmax", "value": "1"}, {"name": "net.ipv4.tcp_rmem"}]},
            "volumes": [{"name": "h", "hostPath": {"path": "/"}}, {"name": "s", "secret": {}}],
            "initContainers": [{"name": "i", "securityContext": {"capabilities": {"add": ["SYS_ADMIN", "CHOWN"]}}}],
            "containers": [{"name": "c", "ports": [{"hostPort": 80}], "securityContext": {"privileged": true,
                "procMount": "Unmasked", "seccompProfile": {"type": "Unconfined"}, "seLinuxOptions": {"user": "x"}}}],
            "ephemeralContainers": [{"name": "e", "securityContext": {"privileged": true}}]});
        assert_eq!(
            violations("baseline:v1.30", &spec),
            "non-default capabilities (container \"i\" must not include \"SYS_ADMIN\" in \
             securityContext.capabilities.add), host namespaces (hostNetwork=true, hostIPC=true), hostPath volumes \
             (volume \"h\"), hostPort (container \"c\" uses hostPort 80), privileged (containers \"c\", \"e\" must not \
             set securityContext.privileged=true), procMount (container \"c\" must not set securityContext.procMount \
             to \"Unmasked\"), seLinuxOptions (container \"c\" set forbidden securityContext.seLinuxOptions: user may \
             not be set), seccompProfile (container \"c\" must not set securityContext.seccompProfile.type to \
             \"Unconfined\"), forbidden sysctls (kernel.msgmax, net.ipv4.tcp_rmem)"
        );
        assert!(!violations("baseline:latest", &spec).contains("tcp_rmem"), "allowed since 1.32");
    }

    #[test]
    fn labels_that_say_nothing_sensible_refuse_most_and_warn_of_nothing() {
        let configuration = Configuration::new(&PodSecuritySettings::default()).expect("good");
        let labels = json!({"pod-security.kubernetes.io/enforce": "x", "pod-security.kubernetes.io/warn": "y",
            "pod-security.kubernetes.io/audit-version": "1.2"});
        let (policy, mistakes) = configuration.of_labels(Some(&labels));
        assert_eq!((policy.enforce.level, policy.warn.level), (Level::Restricted, Level::Privileged));
        assert_eq!(mistakes.len(), 3);
        assert_eq!(
            errors(&mistakes)[0].to_string(),
            "metadata.labels[pod-security.kubernetes.io/enforce]: Invalid value: \"x\": must be one of privileged, \
             baseline, restricted"
        );
        let enforced = json!({"pod-security.kubernetes.io/enforce": "baseline"});
        let (policy, _) = configuration.of_labels(Some(&enforced));
        assert_eq!(policy.warn.level, Level::Baseline, "who refuses warns too");
    }

    #[test]
    fn only_a_new_image_or_container_is_looked_at_again() {
        let old = json!({"spec": {"containers": [{"name": "a", "image": "x"}]}});
        let mut new = old.clone();
        new["metadata"] = json!({"labels": {"a": "b"}});
        assert!(!is_significant(&new, &old));
        new["spec"]["ephemeralContainers"] = json!([{"name": "debug", "image": "y"}]);
        assert!(is_significant(&new, &old));
        new = old.clone();
        new["spec"]["containers"][0]["image"] = "y".into();
        assert!(is_significant(&new, &old));
    }
}
