use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::networking::v1::IPAddress;
use kube::api::{Api, DeleteParams};
use serde_json::json;

use crate::cluster::{start, until_gone, until_one};

#[tokio::test]
async fn an_address_of_a_service_has_an_object_as_long_as_the_service_has_it() {
    let cluster = start().await;
    let service: Service = cluster.create(json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}})).await;
    let address = service.spec.unwrap().cluster_ip.unwrap();
    let objects: Api<IPAddress> = Api::all(cluster.client.clone());
    let object = until_one(&objects, &address, |_| true).await;
    assert_eq!(object.metadata.labels.unwrap()["ipaddress.kubernetes.io/managed-by"], "ipallocator.k8s.io");
    let parent = object.spec.unwrap().parent_ref;
    assert_eq!(
        (parent.resource.as_str(), parent.namespace.as_deref(), parent.name.as_str()),
        ("services", Some("test"), "s")
    );
    // Whoever deletes it gets it back; with the Service it goes.
    objects.delete(&address, &DeleteParams::default()).await.unwrap();
    until_one(&objects, &address, |again| again.metadata.uid != object.metadata.uid).await;
    cluster.api::<Service>().delete("s", &DeleteParams::default()).await.unwrap();
    until_gone(&objects, &address).await;
}
