use std::time::Duration;

use carob_controllers::Options;
use k8s_openapi::api::core::v1::Event;
use kube::ResourceExt;
use serde_json::json;

use crate::cluster::{self, Cluster, until, until_gone};

async fn create(cluster: &Cluster, name: &str) -> Event {
    let about = json!({"kind": "Pod", "namespace": cluster.namespace, "name": "p"});
    cluster.create(json!({"metadata": {"name": name}, "involvedObject": about, "reason": "R", "count": 1})).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_goes_when_nothing_was_added_to_it_for_its_time() {
    let cluster = cluster::start_with(Options { event_ttl: Duration::from_secs(2), ..Options::default() }).await;
    let counted = create(&cluster, "counted").await;
    create(&cluster, "untouched").await;
    let counting = async {
        for count in 2.. {
            let event: Event = cluster.patch("counted", json!({"count": count})).await;
            assert_eq!(event.uid(), counted.uid());
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    };
    let events = cluster.api::<Event>();
    tokio::select! {
        () = counting => {}
        () = until_gone(&events, "untouched") => {}
    }
    assert!(events.get("counted").await.is_ok());
    until(&events, <[Event]>::is_empty).await;
}
