//! Clients that stay with one endpoint.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use carob_tests::pods::list;
use carob_tests::{Setup, eventually};
use serde_json::json;

use crate::client::connect;
use crate::ingress::{ingress, path};
use crate::{service, start};

#[test]
fn a_client_stays_with_its_endpoint_until_that_is_gone() {
    let config = "network:\n  edge: {trustedProxies: [0.0.0.0/0]}\n";
    let carob = start(&Setup { images: &["tools"], config: Some(config), ..Setup::default() });
    let template = json!({
        "metadata": {"labels": {"app": "web"}},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [{
            "name": "main", "image": "tools", "imagePullPolicy": "IfNotPresent", "args": ["http-server"],
            "readinessProbe": {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1},
        }]},
    });
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
        "replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": template}});
    let mut sticky = service("web");
    sticky["spec"]["sessionAffinity"] = json!("ClientIP");
    let rule = json!({"rules": [{"http": {"paths": [path("/", "Prefix", "web")]}}]});
    carob.apply(&list(&[deployment, sticky, ingress("web", rule)]));
    carob.wait("ingress/web", "jsonpath={.status.loadBalancer.ingress[0].ip}");
    let at = carob.jsonpath("ingress/web", ".status.loadBalancer.ingress[0].ip");
    let endpoint_of = |client: &str| {
        let answer = connect(&at, 80)?.get("any.test", "/hostname", &format!("X-Forwarded-For: {client}\r\n"))?;
        (answer.status == 200).then(|| answer.body.trim().to_owned())
    };
    let came = Cell::new(0_u32);
    // Each a client that was never here before.
    let strangers = |count: u32| {
        let from = came.replace(came.get() + count);
        let all = (from..from + count).map(|number| format!("198.18.{}.{}", number / 250, number % 250));
        all.filter_map(|client| endpoint_of(&client)).collect::<BTreeSet<_>>()
    };
    let known: Vec<String> = (1..=40).map(|number| format!("192.0.2.{number}")).collect();
    let endpoints = || -> BTreeMap<&str, Option<String>> {
        known.iter().map(|client| (client.as_str(), endpoint_of(client))).collect()
    };
    eventually("all three take requests", || strangers(30).len() == 3);
    let first = endpoints();
    assert!(first.values().all(Option::is_some), "{first:?}");
    assert_eq!(first.values().collect::<BTreeSet<_>>().len(), 3, "each has clients: {first:?}");
    assert_eq!(endpoints(), first);

    carob.kubectl(&["scale", "deployment/web", "--replicas=5"]);
    eventually("the new ones take requests", || strangers(50).len() == 5);
    assert_eq!(endpoints(), first, "those that were here stay where they were");

    let gone = first[known[0].as_str()].clone().expect("an endpoint");
    carob.kubectl(&["delete", "pod", &gone, "--grace-period=0", "--force"]);
    eventually("it takes none any more", || !strangers(50).contains(&gone));
    for (client, endpoint) in endpoints() {
        match &first[client] {
            before if before.as_ref() == Some(&gone) => {
                assert!(endpoint.is_some() && endpoint.as_ref() != Some(&gone), "{client}: {endpoint:?}");
            }
            before => assert_eq!(&endpoint, before, "{client}"),
        }
    }
}
