//! A container's environment: the image's, the spec's with its references, and the variables of the `kubernetes` service.

use super::ConfigError;
use super::expand::{Room, expand};
use super::resources::{self, PodAmounts};
use crate::addresses::Addresses;
use k8s_openapi::api::core::v1::{
    ConfigMap, Container, EnvVarSource, FileKeySelector, ObjectFieldSelector, Pod, PodSpec, Secret, Service,
};
use std::collections::{BTreeMap, HashMap};

/// What references in an environment or a downward API volume can name.
#[derive(Clone)]
pub(crate) struct Facts<'a> {
    pub pod: &'a Pod,
    pub pod_ips: Option<Addresses>,
    pub host_ips: Addresses,
    pub node: &'a str,
    pub allocatable: PodAmounts,
}

impl Facts<'_> {
    /// What a container that sets no limit is told that it may have.
    pub fn unless_limited(&self) -> PodAmounts {
        let spec = self.pod.spec.as_ref();
        spec.map_or(self.allocatable, |spec| resources::unless_limited(spec, self.allocatable))
    }
}

/// Objects of the pod's namespace: ConfigMaps and Secrets as far as the container names them (a missing one isn't in the
/// map), and Services.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    pub config_maps: BTreeMap<String, ConfigMap>,
    pub secrets: BTreeMap<String, Secret>,
    /// Those of the namespace, where the pod wants their variables.
    pub services: Vec<Service>,
}

/// Names of the ConfigMaps and Secrets that a container's environment needs.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Needs {
    pub config_maps: Vec<String>,
    pub secrets: Vec<String>,
    /// Whether the namespace's Services are needed.
    pub services: bool,
}

/// What to fetch before [`environment`] can be called.
pub(crate) fn needs(pod: &PodSpec, container: &Container) -> Needs {
    let mut needs = Needs { services: pod.enable_service_links != Some(false), ..Needs::default() };
    for source in container.env_from.iter().flatten() {
        needs.config_maps.extend(source.config_map_ref.iter().map(|r| r.name.clone()));
        needs.secrets.extend(source.secret_ref.iter().map(|r| r.name.clone()));
    }
    for source in container.env.iter().flatten().filter_map(|var| var.value_from.as_ref()) {
        needs.config_maps.extend(source.config_map_key_ref.iter().map(|r| r.name.clone()));
        needs.secrets.extend(source.secret_key_ref.iter().map(|r| r.name.clone()));
    }
    for list in [&mut needs.config_maps, &mut needs.secrets] {
        list.sort();
        list.dedup();
    }
    needs
}

/// Ordered variables; setting one again keeps its place.
#[derive(Default)]
struct Environment {
    list: Vec<(String, String)>,
    places: HashMap<String, usize>,
}

impl Environment {
    fn get(&self, name: &str) -> Option<&str> {
        self.places.get(name).map(|place| self.list[*place].1.as_str())
    }

    fn set(&mut self, name: String, value: String) {
        if let Some(place) = self.places.get(&name) {
            self.list[*place].1 = value;
        } else {
            self.places.insert(name.clone(), self.list.len());
            self.list.push((name, value));
        }
    }
}

/// The variables that the spec and the cluster give (without the image's).
pub(crate) fn environment(
    container: &Container,
    facts: &Facts<'_>,
    objects: &Objects,
    services: &[(String, String)],
    from_file: &dyn Fn(&FileKeySelector) -> Result<Option<String>, ConfigError>,
) -> Result<Vec<(String, String)>, ConfigError> {
    let namespace = facts.pod.metadata.namespace.as_deref().unwrap_or_default();
    let mut env = Environment::default();
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or("");
        if let Some(reference) = &source.config_map_ref {
            match objects.config_maps.get(&reference.name) {
                Some(map) => {
                    for (key, value) in map.data.iter().flatten() {
                        env.set(format!("{prefix}{key}"), value.clone());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(missing("configmap", &reference.name)),
            }
        }
        if let Some(reference) = &source.secret_ref {
            match objects.secrets.get(&reference.name) {
                Some(secret) => {
                    for (key, value) in secret.data.iter().flatten() {
                        env.set(format!("{prefix}{key}"), String::from_utf8_lossy(&value.0).into_owned());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(missing("secret", &reference.name)),
            }
        }
    }
    let mut room = Room::default();
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (Some(text), _) if !text.is_empty() => {
                let service =
                    |name: &str| services.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str());
                Some(expand(text, |name| env.get(name).or_else(|| service(name)), &mut room)?)
            }
            (_, Some(EnvVarSource { file_key_ref: Some(key), .. })) => from_file(key)?,
            (_, Some(source)) => referenced(source, container, facts, objects, namespace)?,
            _ => Some(String::new()),
        };
        if let Some(value) = value {
            env.set(variable.name.clone(), value);
        }
    }
    for (name, value) in services {
        if env.get(name).is_none() {
            env.set(name.clone(), value.clone());
        }
    }
    Ok(env.list)
}

/// The image's variables, then the container's over them.
pub(crate) fn over_image(image: &[(String, String)], env: Vec<(String, String)>) -> Vec<(String, String)> {
    let mut all = Environment::default();
    for (name, value) in image.iter().cloned().chain(env) {
        all.set(name, value);
    }
    all.list
}

/// `None` leaves the variable out: an optional key that isn't there.
fn referenced(
    source: &EnvVarSource,
    container: &Container,
    facts: &Facts<'_>,
    objects: &Objects,
    namespace: &str,
) -> Result<Option<String>, ConfigError> {
    if let Some(field) = &source.field_ref {
        return field_value(field, facts).map(Some);
    }
    if let Some(reference) = &source.resource_field_ref {
        let named = reference.container_name.as_deref().filter(|name| !name.is_empty());
        let of = match named {
            Some(name) => {
                find_container(facts.pod, name).ok_or_else(|| ConfigError(format!("container {name} not found")))?
            }
            None => container,
        };
        return resources::field(of, &reference.resource, reference.divisor.as_ref(), facts.unless_limited())
            .map(Some)
            .ok_or_else(|| ConfigError(format!("unsupported container resource : {}", reference.resource)));
    }
    if let Some(reference) = &source.config_map_key_ref {
        let optional = reference.optional == Some(true);
        let Some(map) = objects.config_maps.get(&reference.name) else {
            return if optional { Ok(None) } else { Err(missing("configmap", &reference.name)) };
        };
        return match map.data.as_ref().and_then(|data| data.get(&reference.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(ConfigError(format!(
                "couldn't find key {} in ConfigMap {namespace}/{}",
                reference.key, reference.name
            ))),
        };
    }
    if let Some(reference) = &source.secret_key_ref {
        let optional = reference.optional == Some(true);
        let Some(secret) = objects.secrets.get(&reference.name) else {
            return if optional { Ok(None) } else { Err(missing("secret", &reference.name)) };
        };
        return match secret.data.as_ref().and_then(|data| data.get(&reference.key)) {
            Some(value) => Ok(Some(String::from_utf8_lossy(&value.0).into_owned())),
            None if optional => Ok(None),
            None => Err(ConfigError(format!(
                "couldn't find key {} in Secret {namespace}/{}",
                reference.key, reference.name
            ))),
        };
    }
    Ok(Some(String::new()))
}

/// A container of the pod by name.
pub(crate) fn find_container<'a>(pod: &'a Pod, name: &str) -> Option<&'a Container> {
    let spec = pod.spec.as_ref()?;
    spec.containers.iter().chain(spec.init_containers.iter().flatten()).find(|container| container.name == name)
}

fn missing(kind: &str, name: &str) -> ConfigError {
    ConfigError(format!("{kind} \"{name}\" not found"))
}

/// The value of a downward API field.
pub(crate) fn field_value(field: &ObjectFieldSelector, facts: &Facts<'_>) -> Result<String, ConfigError> {
    let (meta, spec) = (&facts.pod.metadata, facts.pod.spec.as_ref());
    let path = field.field_path.as_str();
    let text = |value: Option<&String>| value.cloned().unwrap_or_default();
    if let Some((base, key)) = path.strip_suffix(']').and_then(|path| path.split_once('[')) {
        let key = key.trim_matches(|quote| quote == '\'' || quote == '"');
        let map = match base {
            "metadata.labels" => meta.labels.as_ref(),
            "metadata.annotations" => meta.annotations.as_ref(),
            _ => return Err(unsupported(path)),
        };
        return Ok(text(map.and_then(|map| map.get(key))));
    }
    Ok(match path {
        "metadata.name" => text(meta.name.as_ref()),
        "metadata.namespace" => text(meta.namespace.as_ref()),
        "metadata.uid" => text(meta.uid.as_ref()),
        "metadata.labels" => lines(meta.labels.as_ref()),
        "metadata.annotations" => lines(meta.annotations.as_ref()),
        "spec.nodeName" => facts.node.to_owned(),
        "spec.serviceAccountName" => text(spec.and_then(|spec| spec.service_account_name.as_ref())),
        "status.hostIP" => facts.host_ips.first.to_string(),
        "status.hostIPs" => facts.host_ips.to_string(),
        "status.podIP" => facts.pod_ips.map(|ips| ips.first.to_string()).unwrap_or_default(),
        "status.podIPs" => facts.pod_ips.map(|ips| ips.to_string()).unwrap_or_default(),
        _ => return Err(unsupported(path)),
    })
}

fn unsupported(path: &str) -> ConfigError {
    ConfigError(format!("unsupported fieldPath: {path}"))
}

/// A map as a downward API file: one `key="value"` a line, sorted, the value quoted.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(key, value)| format!("{key}={value:?}")).collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod() -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u1", "labels": {"app": "x", "b": "two \"words\""}},
            "spec": {"serviceAccountName": "default", "containers": [{"name": "c"}]}
        }))
        .unwrap()
    }

    fn build(container: Value, objects: &Objects) -> Result<Vec<(String, String)>, ConfigError> {
        let pod = pod();
        let facts = Facts {
            pod: &pod,
            pod_ips: Some("10.1.2.3,fd00::a01:203".parse().unwrap()),
            host_ips: "192.168.0.1".parse().unwrap(),
            node: "n1",
            allocatable: PodAmounts::default(),
        };
        let services = crate::container::service_env::of_api("10.96.0.1".parse().unwrap(), 443);
        environment(&serde_json::from_value(container).unwrap(), &facts, objects, &services, &|key| {
            Ok(Some(key.key.clone()))
        })
    }

    fn objects() -> Objects {
        let map = json!({"data": {"color": "red", "size": "xl"}});
        let secret = json!({"data": {"password": "aHVudGVy"}});
        Objects {
            config_maps: [("cm".to_owned(), serde_json::from_value(map).unwrap())].into(),
            secrets: [("s".to_owned(), serde_json::from_value(secret).unwrap())].into(),
            services: Vec::new(),
        }
    }

    #[test]
    fn variables_that_double_each_other_end_as_an_error() {
        let doubled = |n: usize| json!({"name": format!("A{n}"), "value": format!("$(A{0})$(A{0})", n - 1)});
        let first = json!({"name": "A0", "value": "0123456789"});
        let env: Vec<Value> = std::iter::once(first).chain((1..60).map(doubled)).collect();
        let error = build(json!({"name": "c", "env": env}), &Objects::default()).unwrap_err();
        assert!(error.0.starts_with("argument list too long: $(A"), "{error}");
    }

    fn get<'a>(env: &'a [(String, String)], name: &str) -> Option<&'a str> {
        env.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    #[test]
    fn sources_references_and_expansion_come_together() {
        let env = build(
            json!({"name": "c",
            "envFrom": [{"prefix": "CM_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "s"}}],
            "env": [
                {"name": "A", "value": "$(CM_color)-$(KUBERNETES_SERVICE_HOST)-$(LATER)"},
                {"name": "LATER", "value": "x"},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
                {"name": "SIZE", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "size"}}},
                {"name": "GONE", "valueFrom": {"secretKeyRef": {"name": "no", "key": "k", "optional": true}}},
                {"name": "CM_color", "value": "blue"}
            ]}),
            &objects(),
        )
        .unwrap();
        assert_eq!(get(&env, "A"), Some("red-10.96.0.1-$(LATER)"));
        assert_eq!(get(&env, "CM_color"), Some("blue"));
        assert_eq!(get(&env, "password"), Some("hunter"));
        assert_eq!(get(&env, "IP"), Some("10.1.2.3"));
        assert_eq!(get(&env, "APP"), Some("x"));
        assert_eq!(get(&env, "SIZE"), Some("xl"));
        assert_eq!(get(&env, "GONE"), None);
        assert_eq!(get(&env, "KUBERNETES_PORT_443_TCP"), Some("tcp://10.96.0.1:443"));
    }

    #[test]
    fn what_is_missing_is_said_in_the_kubelets_words() {
        let error = |container| build(container, &objects()).unwrap_err().0;
        assert_eq!(
            error(json!({"name": "c", "envFrom": [{"configMapRef": {"name": "nope"}}]})),
            "configmap \"nope\" not found"
        );
        assert_eq!(
            error(
                json!({"name": "c", "env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]})
            ),
            "couldn't find key k in Secret shop/s"
        );
        assert_eq!(
            error(
                json!({"name": "c", "env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}}]})
            ),
            "couldn't find key k in ConfigMap shop/cm"
        );
    }

    #[test]
    fn maps_become_sorted_quoted_lines() {
        assert_eq!(lines(pod().metadata.labels.as_ref()), "app=\"x\"\nb=\"two \\\"words\\\"\"");
    }

    #[test]
    fn the_container_overrides_the_image() {
        let env =
            over_image(&[("PATH".into(), "/bin".into()), ("A".into(), "1".into())], vec![("A".into(), "2".into())]);
        assert_eq!(env, [("PATH".to_owned(), "/bin".to_owned()), ("A".to_owned(), "2".to_owned())]);
    }

    #[test]
    fn needs_are_named_once() {
        let container = serde_json::from_value(json!({"name": "c",
            "envFrom": [{"configMapRef": {"name": "cm"}}],
            "env": [{"name": "X", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}}]}))
        .unwrap();
        let mut spec = PodSpec::default();
        let config_maps = vec!["cm".to_owned()];
        assert_eq!(needs(&spec, &container), Needs { config_maps, secrets: vec![], services: true });
        spec.enable_service_links = Some(false);
        assert!(!needs(&spec, &container).services);
    }
}
