//! What the proxy brings with it: the Gateway API's kinds, and classes by which it is asked for.

use std::time::Duration;

use futures::future::try_join_all;
use k8s_openapi::api::networking::v1::IngressClass;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::wait::{Condition as _, await_condition, conditions::is_crd_established};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};

use crate::gateway_api::GatewayClass;
use crate::plan::{GATEWAY_CONTROLLER, INGRESS_CONTROLLER};
use crate::publish::{MANAGER, reason};

/// The name of the classes.
pub const CLASS: &str = "carob";
/// Definitions of the Gateway API's kinds. Annotations are added, and both versions have the same schema.
const DEFINITIONS: [&str; 5] = [
    include_str!("../data/gatewayclass.yaml"),
    include_str!("../data/gateway.yaml"),
    include_str!("../data/httproute.yaml"),
    include_str!("../data/grpcroute.yaml"),
    include_str!("../data/referencegrant.yaml"),
];
/// The release of the Gateway API that they are of.
const BUNDLE: (&str, &str) = ("gateway.networking.k8s.io/bundle-version", "v1.4.0");
const CHANNEL: (&str, &str) = ("gateway.networking.k8s.io/channel", "standard");
const APPROVED: (&str, &str) =
    ("api-approved.kubernetes.io", "https://github.com/kubernetes-sigs/gateway-api/pull/3328");
/// Tells apart what this Carob, another version, and somebody else has installed.
const DIGEST: &str = "carob.dev/definition";
/// How long a definition may take until it is served.
const SERVED: Duration = Duration::from_secs(10);

/// Why it didn't come to that.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A definition in the binary is damaged.
    #[error("a definition is no YAML")]
    Yaml(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The API refused something.
    #[error("the API refused {what}")]
    Api {
        /// Of what.
        what: String,
        /// Why.
        source: kube::Error,
    },
}

impl Error {
    /// All of it in a line.
    pub fn text(&self) -> String {
        match self {
            Self::Yaml(source) => format!("{self}: {source}"),
            Self::Api { source, .. } => format!("{self}: {}", reason(source)),
        }
    }
}

fn refused(what: &str) -> impl FnOnce(kube::Error) -> Error {
    move |source| Error::Api { what: what.to_owned(), source }
}

/// Makes what isn't there yet. What somebody else installed stays as it is.
pub async fn install(client: &Client) -> Result<(), Error> {
    // The first: Ingresses without a class get the default one when they are made.
    let ingress = json!({
        "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass",
        "metadata": {"name": CLASS, "annotations": {"ingressclass.kubernetes.io/is-default-class": "true"}},
        "spec": {"controller": INGRESS_CONTROLLER},
    });
    create::<IngressClass>(client, ingress).await?;
    try_join_all(DEFINITIONS.map(|text| define(client, text))).await?;
    let gateway = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
        "metadata": {"name": CLASS},
        "spec": {"controllerName": GATEWAY_CONTROLLER, "description": "Carob's own proxy"},
    });
    create::<GatewayClass>(client, gateway).await
}

async fn create<K>(client: &Client, object: Value) -> Result<(), Error>
where
    K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::Serialize + serde::de::DeserializeOwned,
{
    let kind = K::kind(&());
    let object: K = serde_json::from_value(object).map_err(|error| Error::Yaml(error.into()))?;
    let parameters = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
    match Api::<K>::all(client.clone()).create(&parameters, &object).await {
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        made => made.map(drop).map_err(refused(&kind)),
    }
}

/// A definition as it is applied.
fn definition(text: &str) -> Result<Value, Error> {
    let mut definition: Value = serde_saphyr::from_str(text).map_err(|error| Error::Yaml(error.into()))?;
    let digest = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    definition["metadata"]["annotations"] = json!({
        BUNDLE.0: BUNDLE.1, CHANNEL.0: CHANNEL.1, APPROVED.0: APPROVED.1, DIGEST: format!("{digest:016x}"),
    });
    // What all of the API's kinds have in common.
    for version in definition["spec"]["versions"].as_array_mut().into_iter().flatten() {
        let schema = &mut version["schema"]["openAPIV3Schema"];
        schema["type"] = json!("object");
        schema["required"] = json!(["spec"]);
        for field in ["apiVersion", "kind"] {
            schema["properties"][field] = json!({"type": "string"});
        }
        schema["properties"]["metadata"] = json!({"type": "object"});
    }
    Ok(definition)
}

async fn define(client: &Client, text: &str) -> Result<(), Error> {
    let wanted = definition(text)?;
    let name = wanted["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let api = Api::<CustomResourceDefinition>::all(client.clone());
    let found = api.get_opt(&name).await.map_err(refused(&name))?;
    let annotation = |name: &str| found.as_ref().and_then(|found| found.annotations().get(name));
    let ours = annotation(DIGEST);
    let current = ours.map(String::as_str) == wanted["metadata"]["annotations"][DIGEST].as_str();
    let replaceable = ours.is_some() && annotation(BUNDLE.0).map(String::as_str) == Some(BUNDLE.1);
    if found.is_none() || (!current && replaceable) {
        let parameters = PatchParams::apply(MANAGER).force();
        api.patch(&name, &parameters, &Patch::Apply(&wanted)).await.map_err(refused(&name))?;
    }
    if is_crd_established().matches_object(found.as_ref()) {
        return Ok(());
    }
    let served = tokio::time::timeout(SERVED, await_condition(api, &name, is_crd_established())).await;
    if !matches!(served, Ok(Ok(_))) {
        tracing::warn!(name, "the definition is not served yet");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn definitions_are_read_and_their_versions_have_schemas() {
        for text in DEFINITIONS {
            let read = definition(text).unwrap();
            for version in read["spec"]["versions"].as_array().unwrap() {
                let schema = &version["schema"]["openAPIV3Schema"]["properties"]["spec"];
                assert!(schema["properties"].as_object().is_some_and(|fields| !fields.is_empty()), "{text}");
            }
        }
    }

    /// The paths of a schema's fields that have no fields themselves.
    fn leaves(schema: &Value, path: &str, found: &mut Vec<String>) {
        if schema["items"].is_object() {
            return leaves(&schema["items"], &format!("{path}[*]"), found);
        }
        match schema["properties"].as_object() {
            Some(fields) => {
                for (name, inner) in fields {
                    leaves(inner, &format!("{path}.{name}"), found);
                }
            }
            None => found.push(path.to_owned()),
        }
    }

    #[test]
    fn every_field_has_a_line_in_the_support_matrix() {
        let lines = include_str!("../../../gateway/api/data/support/gateway-api.txt");
        for text in DEFINITIONS {
            let read = definition(text).unwrap();
            let kind = read["spec"]["names"]["kind"].as_str().unwrap();
            let own = lines.lines().skip_while(|line| !line.starts_with(&format!("{kind} "))).skip(1);
            let known: Vec<&str> =
                own.map_while(|line| line.strip_prefix("  ")).filter_map(|line| line.split(' ').nth(1)).collect();
            let mut found = Vec::new();
            leaves(&read["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"], "spec", &mut found);
            assert!(!known.is_empty() && found.len() > 1, "{kind}");
            for field in found {
                let covered = known.iter().any(|line| {
                    field.strip_prefix(line).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
                });
                assert!(covered, "{kind}: {field} has no line");
            }
        }
    }
}
