use k8s_openapi::api::flowcontrol::v1::{FlowSchema, PriorityLevelConfiguration};
use kube::api::{Api, DeleteParams, PostParams};
use serde_json::json;

use crate::cluster::{start, until_one};

fn dangles(schema: &FlowSchema) -> Option<&str> {
    let conditions = schema.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|known| known.type_.as_deref() == Some("Dangling"))?.status.as_deref()
}

#[tokio::test]
async fn a_schema_says_whether_its_priority_level_is_missing() {
    let cluster = start().await;
    let schemas: Api<FlowSchema> = Api::all(cluster.client.clone());
    let levels: Api<PriorityLevelConfiguration> = Api::all(cluster.client.clone());
    until_one(&schemas, "catch-all", |schema| dangles(schema) == Some("False")).await;
    let schema = json!({"metadata": {"name": "s"}, "spec": {"priorityLevelConfiguration": {"name": "later"}}});
    schemas.create(&PostParams::default(), &serde_json::from_value(schema).unwrap()).await.unwrap();
    until_one(&schemas, "s", |schema| dangles(schema) == Some("True")).await;
    let limited = json!({"limitResponse": {"type": "Reject"}});
    let level = json!({"metadata": {"name": "later"}, "spec": {"type": "Limited", "limited": limited}});
    let made: PriorityLevelConfiguration = serde_json::from_value(level).unwrap();
    levels.create(&PostParams::default(), &made).await.unwrap();
    until_one(&schemas, "s", |schema| dangles(schema) == Some("False")).await;
    levels.delete("later", &DeleteParams::default()).await.unwrap();
    until_one(&schemas, "s", |schema| dangles(schema) == Some("True")).await;
}
