//! The condition `Dangling` of FlowSchemas: whether the priority level is missing that one refers to. In Kubernetes the
//! server itself says so, and so does this in its name.

use std::sync::Arc;

use k8s_openapi::api::flowcontrol::v1::{FlowSchema, FlowSchemaCondition};
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;

use crate::cluster::Cluster;
use crate::controller::{self, Controller, Setup};
use crate::informer::Key;
use crate::queue::{Again, Queue};
use crate::replica_set::tolerate_gone;
use crate::status;

/// The manager of the condition.
const MANAGER: &str = "api-priority-and-fairness-config-consumer-v1";
const DANGLING: &str = "Dangling";

pub(crate) struct FlowSchemas {
    cluster: Cluster,
}

impl Controller for FlowSchemas {
    type Item = Key;
    const NAME: &'static str = "flow-schema-status";
    const USER: Option<&'static str> = Some("system:apiserver");
    const GROUPS: &'static [&'static str] = &["system:masters", "system:authenticated"];

    fn new(setup: &Setup<'_>) -> Self {
        Self { cluster: setup.cluster.clone() }
    }

    fn listen(self: &Arc<Self>, _: &Setup<'_>, queue: &Queue<Key>) {
        controller::each(&self.cluster.flow_schemas, queue);
        let (schemas, queue) = (self.cluster.flow_schemas.clone(), queue.clone());
        self.cluster.priority_levels.on_change(move |change| {
            // Only that a level comes or goes matters.
            if let (Some(level), None) | (None, Some(level)) = (change.old, change.new) {
                let name = Key::of(&**level).name;
                for schema in schemas.list(|schema| level_of(schema) == name) {
                    queue.add(Key::of(&*schema));
                }
            }
        });
    }

    async fn reconcile(&self, key: Key) -> Result<Again, kube::Error> {
        let Some(schema) = self.cluster.flow_schemas.get(&key) else { return Ok(None) };
        let level = level_of(&schema);
        let found = self.cluster.priority_levels.get(&Key::new("", level)).is_some();
        let conditions = schema.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let known = conditions.into_iter().find(|known| known.type_.as_deref() == Some(DANGLING));
        let condition = condition(level, found, known);
        if known == Some(&condition) {
            return Ok(None);
        }
        let patch = Patch::Apply(json!({
            "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema",
            "metadata": {"name": key.name, "uid": schema.metadata.uid},
            "status": {"conditions": [condition]},
        }));
        let api: Api<FlowSchema> = Api::all(self.cluster.client.clone());
        let params = PatchParams::apply(MANAGER).force();
        tolerate_gone(api.patch_status(&key.name, &params, &patch).await.map(|_| ()))?;
        Ok(None)
    }
}

fn level_of(schema: &FlowSchema) -> &str {
    schema.spec.as_ref().map_or("", |spec| &spec.priority_level_configuration.name)
}

/// The condition of a schema that refers to `level`; it keeps its time unless something changes.
fn condition(level: &str, found: bool, known: Option<&FlowSchemaCondition>) -> FlowSchemaCondition {
    let start = format!("This FlowSchema references the PriorityLevelConfiguration object named {level:?}");
    let (status, reason, message) = if found {
        ("False", "Found", format!("{start} and it exists"))
    } else {
        ("True", "NotFound", format!("{start} but there is no such object"))
    };
    let mut condition = FlowSchemaCondition {
        type_: Some(DANGLING.to_owned()),
        status: Some(status.to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_transition_time: known.and_then(|known| known.last_transition_time.clone()),
    };
    if known != Some(&condition) || condition.last_transition_time.is_none() {
        condition.last_transition_time = Some(status::now());
    }
    condition
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_condition_says_whether_the_level_exists_and_keeps_its_time() {
        let first = condition("high", false, None);
        assert_eq!((first.status.as_deref(), first.reason.as_deref()), (Some("True"), Some("NotFound")));
        assert_eq!(condition("high", false, Some(&first)), first);
        let found = condition("high", true, Some(&first));
        let told = "This FlowSchema references the PriorityLevelConfiguration object named \"high\" and it exists";
        assert_eq!((found.status.as_deref(), found.message.as_deref()), (Some("False"), Some(told)));
    }
}
