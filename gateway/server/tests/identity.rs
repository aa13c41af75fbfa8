//! Who may do what, tried by those who want more: rights that are passed on, borrowed, smuggled in by other verbs and
//! other paths.

mod support;

use http::{Method, Request};
use kube::client::Body;
use serde_json::{Value, json};
use support::Cluster;

const RBAC: &str = "/apis/rbac.authorization.k8s.io/v1";

/// Sends a request; gives the code and the answer.
async fn send(
    client: &kube::Client,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &Value,
) -> (u16, Value) {
    let mut request = Request::builder().method(method.clone()).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    if method == Method::PATCH && !headers.iter().any(|(name, _)| *name == "content-type") {
        request = request.header("content-type", "application/merge-patch+json");
    }
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    let answer = client.send(request.body(Body::from(body)).expect("a request")).await.expect("an answer");
    let code = answer.status().as_u16();
    let body = answer.into_body().collect_bytes().await.expect("a body");
    (code, serde_json::from_slice(&body).unwrap_or(Value::Null))
}

async fn post(client: &kube::Client, path: &str, body: &Value) -> (u16, Value) {
    send(client, Method::POST, path, &[], body).await
}

async fn get(client: &kube::Client, path: &str) -> u16 {
    send(client, Method::GET, path, &[], &Value::Null).await.0
}

async fn make(cluster: &Cluster, path: &str, body: &Value) -> Value {
    let (code, made) = post(&cluster.admin(), path, body).await;
    assert_eq!(code, 201, "{path}: {made}");
    made
}

/// Gives a user some rights in the namespace `default`.
async fn allow(cluster: &Cluster, user: &str, rules: &Value) -> kube::Client {
    let role = json!({"metadata": {"name": user}, "rules": rules});
    make(cluster, &format!("{RBAC}/namespaces/default/roles"), &role).await;
    let binding = json!({"metadata": {"name": user}, "subjects": [{"kind": "User", "name": user}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": user}});
    make(cluster, &format!("{RBAC}/namespaces/default/rolebindings"), &binding).await;
    cluster.gateway.client(user, &[])
}

/// Gives a user some rights everywhere.
async fn allow_everywhere(cluster: &Cluster, user: &str, rules: &Value) -> kube::Client {
    make(cluster, &format!("{RBAC}/clusterroles"), &json!({"metadata": {"name": user}, "rules": rules})).await;
    let binding = json!({"metadata": {"name": user}, "subjects": [{"kind": "User", "name": user}],
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": user}});
    make(cluster, &format!("{RBAC}/clusterrolebindings"), &binding).await;
    cluster.gateway.client(user, &[])
}

fn rule(groups: &[&str], resources: &[&str], verbs: &[&str]) -> Value {
    json!({"apiGroups": groups, "resources": resources, "verbs": verbs})
}

/// May write roles and bindings, but neither `escalate` nor `bind`.
fn writes_roles() -> Value {
    let verbs = ["create", "get", "update", "patch", "delete"];
    rule(&["rbac.authorization.k8s.io"], &["roles", "rolebindings", "clusterroles", "clusterrolebindings"], &verbs)
}

#[tokio::test]
async fn a_right_is_usable_as_soon_as_it_is_given_and_gone_with_its_binding() {
    let cluster = Cluster::new().await;
    let pods = "/api/v1/namespaces/default/pods";
    assert_eq!(get(&cluster.gateway.client("alice", &[]), pods).await, 403);
    let alice = allow(&cluster, "alice", &json!([rule(&[""], &["pods"], &["list"])])).await;
    assert_eq!(get(&alice, pods).await, 200);
    assert_eq!(get(&alice, "/api/v1/namespaces/kube-system/pods").await, 403);
    assert_eq!(get(&alice, "/api/v1/pods").await, 403);
    let binding = format!("{RBAC}/namespaces/default/rolebindings/alice");
    assert_eq!(send(&cluster.admin(), Method::DELETE, &binding, &[], &Value::Null).await.0, 200);
    // What is taken away is gone a moment later.
    let gone = async { while get(&alice, pods).await == 200 {} };
    tokio::time::timeout(std::time::Duration::from_secs(5), gone).await.expect("soon");
}

#[tokio::test]
async fn nobody_writes_a_role_with_more_than_they_have_by_any_verb() {
    let cluster = Cluster::new().await;
    let mallory = allow(&cluster, "mallory", &json!([writes_roles(), rule(&[""], &["pods"], &["get"])])).await;
    let roles = format!("{RBAC}/namespaces/default/roles");
    let role = |name: &str, resources: &[&str], verbs: &[&str]| {
        json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": name},
            "rules": [rule(&[""], resources, verbs)]})
    };
    let (code, _) = post(&mallory, &roles, &role("own", &["pods"], &["get"])).await;
    assert_eq!(code, 201, "what she has, she may give");
    let greedy = role("greedy", &["secrets", "pods"], &["get", "list"]);
    let (code, refusal) = post(&mallory, &roles, &greedy).await;
    assert_eq!(code, 403);
    assert_eq!(
        refusal["message"],
        "roles.rbac.authorization.k8s.io \"greedy\" is forbidden: user \"mallory\" (groups=[\"system:authenticated\"]) is \
         attempting to grant RBAC permissions not currently held:\n\
         {APIGroups:[\"\"], Resources:[\"pods\"], Verbs:[\"list\"]}\n\
         {APIGroups:[\"\"], Resources:[\"secrets\"], Verbs:[\"get\" \"list\"]}"
    );
    // A PUT and an apply make what isn't there; a PUT, a patch and an apply change what is.
    for name in ["greedy", "own"] {
        let path = format!("{roles}/{name}");
        let wanted = role(name, &["secrets"], &["get"]);
        assert_eq!(send(&mallory, Method::PUT, &path, &[], &wanted).await.0, 403, "PUT {name}");
        let apply = [("content-type", "application/apply-patch+yaml")];
        let forced = format!("{path}?fieldManager=m&force=true");
        assert_eq!(send(&mallory, Method::PATCH, &forced, &apply, &wanted).await.0, 403, "apply {name}");
    }
    let path = format!("{roles}/own");
    let all = json!({"rules": [rule(&["*"], &["*"], &["*"])]});
    assert_eq!(send(&mallory, Method::PATCH, &path, &[], &all).await.0, 403);
    let json_patch = [("content-type", "application/json-patch+json")];
    let operations = json!([{"op": "add", "path": "/rules/0/verbs/-", "value": "*"}]);
    assert_eq!(send(&mallory, Method::PATCH, &path, &json_patch, &operations).await.0, 403);
    assert_eq!(send(&mallory, Method::PATCH, &format!("{path}?dryRun=All"), &[], &all).await.0, 403);
    let labels = json!({"metadata": {"finalizers": ["example.com/f"]}});
    assert_eq!(send(&mallory, Method::PATCH, &path, &[], &labels).await.0, 200, "that gives nothing");
}

#[tokio::test]
async fn nobody_binds_a_role_that_they_do_not_have_unless_they_may_bind_it() {
    let cluster = Cluster::new().await;
    let bind = json!({"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "verbs": ["bind"],
        "resourceNames": ["view"]});
    let mallory = allow(&cluster, "mallory", &json!([writes_roles(), bind])).await;
    let bindings = format!("{RBAC}/namespaces/default/rolebindings");
    let binding = |role: &str| {
        json!({"metadata": {"name": role}, "subjects": [{"kind": "User", "name": "mallory"}],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}})
    };
    assert_eq!(post(&mallory, &bindings, &binding("cluster-admin")).await.0, 403);
    assert_eq!(post(&mallory, &bindings, &binding("edit")).await.0, 403);
    assert_eq!(post(&mallory, &bindings, &binding("missing")).await.0, 404);
    assert_eq!(post(&mallory, &bindings, &binding("view")).await.0, 201);
    // More subjects are more of the same gift.
    make(&cluster, &bindings, &binding("cluster-admin")).await;
    let path = format!("{bindings}/cluster-admin");
    let more = json!({"subjects": [{"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": "eve"}]});
    assert_eq!(send(&mallory, Method::PATCH, &path, &[], &more).await.0, 200, "she has it now herself");
    let trudy = allow(&cluster, "trudy", &json!([writes_roles()])).await;
    assert_eq!(send(&trudy, Method::PATCH, &path, &[], &json!({"subjects": []})).await.0, 403);
}

#[tokio::test]
async fn an_aggregated_role_is_only_for_those_who_may_do_everything() {
    let cluster = Cluster::new().await;
    let mallory = allow_everywhere(&cluster, "mallory", &json!([writes_roles()])).await;
    let role = json!({"metadata": {"name": "collect"}, "rules": [],
        "aggregationRule": {"clusterRoleSelectors": [{"matchLabels": {"a": "b"}}]}});
    let (code, refusal) = post(&mallory, &format!("{RBAC}/clusterroles"), &role).await;
    assert_eq!(code, 403);
    assert_eq!(
        refusal["message"],
        "clusterroles.rbac.authorization.k8s.io \"collect\" is forbidden: must have cluster-admin privileges to use the \
         aggregationRule"
    );
    make(&cluster, &format!("{RBAC}/clusterroles"), &role).await;
    let without = json!({"aggregationRule": null});
    let path = format!("{RBAC}/clusterroles/collect");
    assert_eq!(send(&mallory, Method::PATCH, &path, &[], &without).await.0, 403);
}

#[tokio::test]
async fn only_whoever_may_impersonate_acts_as_another_and_only_with_the_parts_they_may_borrow() {
    let cluster = Cluster::new().await;
    let rules = json!([
        {"apiGroups": [""], "resources": ["users"], "verbs": ["impersonate"], "resourceNames": ["bob"]},
        {"apiGroups": [""], "resources": ["groups"], "verbs": ["impersonate"], "resourceNames": ["dev"]},
        {"apiGroups": ["authentication.k8s.io"], "resources": ["userextras/scopes"], "verbs": ["impersonate"]},
    ]);
    let proxy = allow_everywhere(&cluster, "proxy", &rules).await;
    let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let as_ = async |headers: &[(&str, &str)]| send(&proxy, Method::POST, path, headers, &json!({})).await;
    let (code, answer) =
        as_(&[("impersonate-user", "bob"), ("impersonate-group", "dev"), ("impersonate-extra-scopes", "x")]).await;
    assert_eq!((code, &answer["status"]["userInfo"]["username"]), (201, &json!("bob")), "{answer}");
    let (code, answer) = as_(&[("impersonate-user", "bob"), ("impersonate-group", "system:masters")]).await;
    assert_eq!(code, 403);
    assert_eq!(
        answer["message"],
        "groups \"system:masters\" is forbidden: User \"proxy\" cannot impersonate resource \"groups\" in API group \"\" at \
         the cluster scope"
    );
    for more in [("impersonate-group", "ops"), ("impersonate-extra-other", "x"), ("impersonate-uid", "1")] {
        assert_eq!(as_(&[("impersonate-user", "bob"), more]).await.0, 403, "{more:?}");
    }
    assert_eq!(as_(&[("impersonate-user", "alice")]).await.0, 403);
    assert_eq!(as_(&[("impersonate-user", "system:serviceaccount:kube-system:default")]).await.0, 403);
    // Who may borrow accounts of one namespace gets none of another, and no user of that name.
    let rules = json!([{"apiGroups": [""], "resources": ["serviceaccounts"], "verbs": ["impersonate"]}]);
    let keeper = allow(&cluster, "keeper", &rules).await;
    let borrow =
        async |user: &str| send(&keeper, Method::POST, path, &[("impersonate-user", user)], &json!({})).await.0;
    assert_eq!(borrow("system:serviceaccount:default:x").await, 201);
    assert_eq!(borrow("system:serviceaccount:kube-system:x").await, 403);
    assert_eq!(borrow("system:serviceaccount:default").await, 403);
    assert_eq!(borrow("admin").await, 403);
}

#[tokio::test]
async fn other_verbs_and_other_paths_lead_no_further() {
    let cluster = Cluster::new().await;
    let rules = json!([
        rule(&[""], &["configmaps"], &["update", "patch", "get"]),
        rule(&[""], &["pods"], &["get", "create"]),
        rule(&[""], &["serviceaccounts"], &["create", "get", "update"]),
        rule(&["apps"], &["deployments/scale"], &["get", "update", "patch"]),
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list", "watch"], "resourceNames": ["one"]},
    ]);
    let mallory = allow(&cluster, "mallory", &rules).await;
    let here = |rest: &str| format!("/api/v1/namespaces/default/{rest}");
    // Update and apply make nothing for whoever may not create.
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "new"}});
    let apply = [("content-type", "application/apply-patch+yaml")];
    let (code, answer) = send(&mallory, Method::PATCH, &here("configmaps/new?fieldManager=m"), &apply, &map).await;
    assert_eq!(code, 403, "{answer}");
    assert!(answer["message"].as_str().is_some_and(|text| text.contains("cannot create resource")), "{answer}");
    // A Pod's parts are not the Pod, nor is an account's token the account.
    for path in ["pods/p/log", "pods/p/exec?command=id", "pods/p/portforward", "pods/p/proxy", "pods/p/status"] {
        assert_eq!(get(&mallory, &here(path)).await, 403, "{path}");
    }
    for path in ["pods/p/eviction", "pods/p/binding", "serviceaccounts/default/token"] {
        assert_eq!(post(&mallory, &here(path), &json!({})).await.0, 403, "{path}");
    }
    // Nor is a scale the deployment.
    let deployment = "/apis/apps/v1/namespaces/default/deployments/d";
    assert_eq!(get(&mallory, deployment).await, 403);
    assert_eq!(send(&mallory, Method::PATCH, deployment, &[], &json!({})).await.0, 403);
    assert_eq!(get(&mallory, &format!("{deployment}/scale")).await, 404);
    // One secret by name, in a list as well, and no other.
    assert_eq!(get(&mallory, &here("secrets/one")).await, 404);
    assert_eq!(get(&mallory, &here("secrets?fieldSelector=metadata.name%3Done")).await, 200);
    for path in [
        "secrets",
        "secrets/two",
        "secrets?fieldSelector=metadata.name%3Dtwo",
        "secrets?fieldSelector=metadata.name!%3Dtwo",
        "secrets?fieldSelector=metadata.name%3Dtwo&watch=1",
    ] {
        assert_eq!(get(&mallory, &here(path)).await, 403, "{path}");
    }
    assert_eq!(
        send(&mallory, Method::DELETE, &here("secrets?fieldSelector=metadata.name%3Done"), &[], &Value::Null).await.0,
        403
    );
}

#[tokio::test]
async fn a_node_touches_itself_and_its_pods() {
    let cluster = Cluster::new().await;
    let node = cluster.gateway.client("system:node:n", &["system:nodes"]);
    let other = cluster.gateway.client("system:node:m", &["system:nodes"]);
    let body = |name: &str| json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}}});
    assert_eq!(post(&node, "/api/v1/nodes", &body("m")).await.0, 403, "another's");
    assert_eq!(post(&node, "/api/v1/nodes", &body("n")).await.0, 201);
    assert_eq!(post(&other, "/api/v1/nodes", &body("m")).await.0, 201);
    assert_eq!((get(&node, "/api/v1/nodes/n").await, get(&node, "/api/v1/nodes/m").await), (200, 403));
    let change = async |who: &kube::Client, name: &str, body: &Value| {
        send(who, Method::PATCH, &format!("/api/v1/nodes/{name}"), &[], body).await.0
    };
    assert_eq!(change(&node, "n", &json!({"metadata": {"labels": {"disk": "ssd"}}})).await, 200);
    let role = json!({"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}});
    assert_eq!(change(&node, "n", &role).await, 403);
    assert_eq!(change(&node, "n", &json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}})).await, 403);
    assert_eq!(change(&node, "m", &json!({"metadata": {"labels": {"disk": "ssd"}}})).await, 403);

    let account = json!({"metadata": {"name": "default"}});
    make(&cluster, "/api/v1/namespaces/default/serviceaccounts", &account).await;
    make(&cluster, "/api/v1/namespaces/default/secrets", &json!({"metadata": {"name": "s"}})).await;
    make(&cluster, "/api/v1/namespaces/default/secrets", &json!({"metadata": {"name": "t"}})).await;
    let pod = |name: &str, node: &str| {
        json!({"metadata": {"name": name}, "spec": {"nodeName": node,
            "volumes": [{"name": "v", "secret": {"secretName": "s"}}],
            "containers": [{"name": "c", "image": "i"}]}})
    };
    let pods = "/api/v1/namespaces/default/pods";
    assert_eq!(post(&node, pods, &pod("own", "n")).await.0, 403, "nodes make only mirrors");
    let made = make(&cluster, pods, &pod("p", "n")).await;
    let secret = |name: &str| format!("/api/v1/namespaces/default/secrets/{name}");
    assert_eq!((get(&node, &secret("s")).await, get(&node, &secret("t")).await), (200, 403));
    assert_eq!(get(&other, &secret("s")).await, 403);
    let phase = json!({"status": {"phase": "Running"}});
    let status = format!("{pods}/p/status");
    assert_eq!(send(&other, Method::PATCH, &status, &[], &phase).await.0, 403);
    assert_eq!(send(&node, Method::PATCH, &status, &[], &phase).await.0, 200);
    assert_eq!(send(&other, Method::DELETE, &format!("{pods}/p"), &[], &Value::Null).await.0, 403);
    // Tokens are for the Pods that the node runs.
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let bound =
        |uid: &Value| json!({"spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p", "uid": uid}}});
    let uid = &made["metadata"]["uid"];
    assert_eq!(post(&node, path, &json!({"spec": {}})).await.0, 403);
    assert_eq!(post(&node, path, &bound(&json!("another"))).await.0, 403);
    assert_eq!(post(&other, path, &bound(uid)).await.0, 403);
    assert_eq!(post(&node, path, &bound(uid)).await.0, 201);
}

#[tokio::test]
async fn a_node_does_not_say_whose_it_is_and_offers_only_its_own_devices() {
    let cluster = Cluster::new().await;
    let node = cluster.gateway.client("system:node:n", &["system:nodes"]);
    assert_eq!(post(&node, "/api/v1/nodes", &json!({"metadata": {"name": "n"}})).await.0, 201);
    // Whoever owns an object takes it along when it goes: a node would be deleted, and come back without its taints.
    let owner = json!({"metadata": {"ownerReferences": [
        {"apiVersion": "v1", "kind": "ConfigMap", "name": "none", "uid": "u"}]}});
    let (code, refused) = send(&node, Method::PATCH, "/api/v1/nodes/n", &[], &owner).await;
    assert_eq!(code, 403);
    let why = "nodes \"n\" is forbidden: node \"n\" is not allowed to modify ownerReferences";
    assert_eq!(refused["message"], why);
    assert_eq!(send(&cluster.admin(), Method::PATCH, "/api/v1/nodes/n", &[], &owner).await.0, 200);
    let label = json!({"metadata": {"labels": {"disk": "ssd"}}});
    assert_eq!(send(&node, Method::PATCH, "/api/v1/nodes/n", &[], &label).await.0, 200, "those that stay do no harm");

    let slices = "/apis/resource.k8s.io/v1/resourceslices";
    let slice = |name: &str, node: &str| {
        json!({"metadata": {"name": name}, "spec": {"nodeName": node, "driver": "d.example",
            "pool": {"name": "p", "generation": 1, "resourceSliceCount": 1}}})
    };
    let (code, refused) = post(&node, slices, &slice("another", "m")).await;
    assert_eq!(code, 403);
    let why = "can only create ResourceSlice with the same NodeName as the requesting node";
    assert!(refused["message"].as_str().is_some_and(|text| text.ends_with(why)), "{refused}");
    assert_eq!(post(&node, slices, &slice("own", "n")).await.0, 201);
}

#[tokio::test]
async fn a_node_asks_for_tokens_for_those_whom_its_pods_volumes_name() {
    let cluster = Cluster::new().await;
    let node = cluster.gateway.client("system:node:n", &["system:nodes"]);
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    make(&cluster, accounts, &json!({"metadata": {"name": "default"}})).await;
    let driver = json!({"metadata": {"name": "csi.example"}, "spec": {"tokenRequests": [{"audience": "storage"}]}});
    make(&cluster, "/apis/storage.k8s.io/v1/csidrivers", &driver).await;
    let pods = "/api/v1/namespaces/default/pods";
    let pod = |name: &str, mounts: bool, volumes: &Value| {
        json!({"metadata": {"name": name}, "spec": {"nodeName": "n", "automountServiceAccountToken": mounts,
            "volumes": volumes, "containers": [{"name": "c", "image": "i"}]}})
    };
    let volumes = json!([
        {"name": "a", "projected": {"sources": [{"serviceAccountToken": {"path": "t", "audience": "vault"}}]}},
        {"name": "b", "csi": {"driver": "csi.example"}}]);
    make(&cluster, pods, &pod("named", false, &volumes)).await;
    make(&cluster, pods, &pod("mounted", true, &json!([]))).await;
    let ask = async |pod: &str, audiences: &[&str]| {
        let (_, found) = send(&cluster.admin(), Method::GET, &format!("{pods}/{pod}"), &[], &Value::Null).await;
        let bound = json!({"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": found["metadata"]["uid"]});
        let body = json!({"spec": {"audiences": audiences, "boundObjectRef": bound}});
        post(&node, &format!("{accounts}/default/token"), &body).await
    };
    assert_eq!(ask("named", &["vault"]).await.0, 201, "a projected token");
    assert_eq!(ask("named", &["storage"]).await.0, 201, "what the driver of a volume asks for");
    assert_eq!(ask("mounted", &[]).await.0, 201, "what every container is given");
    assert_eq!(ask("named", &[]).await.0, 403, "no volume has a token for this server");
    assert_eq!(ask("mounted", &["vault"]).await.0, 403);
    let (code, refused) = ask("named", &["bank"]).await;
    assert_eq!(code, 403);
    let why = "audience \"bank\" not found in pod spec volume, system:node:n is not authorized to request tokens for \
               this audience";
    assert!(refused["message"].as_str().is_some_and(|text| text.ends_with(why)), "{refused}");
    let (_, refused) = ask("named", &["vault", "storage"]).await;
    let why = "node may only request 0 or 1 audiences";
    assert!(refused["message"].as_str().is_some_and(|text| text.ends_with(why)), "{refused}");
}

/// A request of a node of another machine. (Those of this process say of themselves what it told them.)
async fn as_node(cluster: &Cluster, node: &str, method: Method, path: &str, body: &Value) -> (u16, Value) {
    let user = format!("system:node:{node}");
    let who = [("impersonate-user", user.as_str()), ("impersonate-group", "system:nodes")];
    send(&cluster.admin(), method, path, &who, body).await
}

#[track_caller]
fn assert_refused((code, answer): (u16, Value), why: &str) {
    let message = answer["message"].as_str().unwrap_or_default();
    assert!(code == 403 && message.contains(why), "{code} {answer}");
}

#[tokio::test]
async fn a_node_that_joined_is_where_nothing_else_is() {
    let cluster = Cluster::new().await;
    let status = async |node: &str, addresses: &[(&str, &str)]| {
        let list: Vec<Value> =
            addresses.iter().map(|(kind, address)| json!({"type": kind, "address": address})).collect();
        let body = json!({"status": {"addresses": list}});
        as_node(&cluster, node, Method::PATCH, &format!("/api/v1/nodes/{node}/status"), &body).await
    };
    for node in ["far", "other"] {
        let body = json!({"metadata": {"name": node}});
        assert_eq!(as_node(&cluster, node, Method::POST, "/api/v1/nodes", &body).await.0, 201);
    }
    let (code, answer) = status("other", &[("InternalIP", "192.0.2.2"), ("Hostname", "other")]).await;
    assert_eq!(code, 200, "{answer}");
    for (kind, address, why) in [
        ("Hostname", "kubernetes.default.svc", "not the node's name"),
        ("InternalDNS", "other", "not the node's name"),
        ("InternalIP", "10.96.0.1", "it is the API server's"),
        ("InternalIP", "10.96.0.10", "one of 10.96.0.0/16"),
        ("ExternalIP", "10.42.3.4", "one of 10.42.0.0/16"),
        ("InternalIP", "127.0.0.2", "no address at which others find one machine"),
        ("InternalIP", "far", "no IP address"),
        ("InternalIP", "::ffff:192.0.2.2", "that of node \"other\""),
    ] {
        assert_refused(status("far", &[(kind, address)]).await, why);
    }
    let own = [("InternalIP", "192.0.2.7"), ("ExternalIP", "198.51.100.7"), ("Hostname", "far")];
    let (code, answer) = status("far", &own).await;
    assert_eq!(code, 200, "{answer}");
    let shared = json!({"metadata": {"annotations": {"carob.dev/machine-address": "192.0.2.2"}}});
    let answer = as_node(&cluster, "far", Method::PATCH, "/api/v1/nodes/far", &shared).await;
    assert_refused(answer, "is not allowed to set the annotation");
    for name in ["kubernetes.default.svc", "web.default.svc", "carob"] {
        let body = json!({"metadata": {"name": name}});
        let answer = as_node(&cluster, name, Method::POST, "/api/v1/nodes", &body).await;
        assert_refused(answer, "is not allowed to have this name");
    }
    // Nodes of this process are where the gateway is.
    let near = cluster.gateway.client("system:node:near", &["system:nodes"]);
    make(&cluster, "/api/v1/nodes", &json!({"metadata": {"name": "near"}})).await;
    let body = json!({"metadata": {"annotations": {"carob.dev/machine-address": "10.96.0.1"}},
        "status": {"addresses": [{"type": "InternalIP", "address": "10.96.0.1"}]}});
    assert_eq!(send(&near, Method::PATCH, "/api/v1/nodes/near/status", &[], &body).await.0, 200);
}

#[tokio::test]
async fn a_node_that_is_heard_of_is_no_other_machine() {
    let cluster = Cluster::new().await;
    let body = json!({"metadata": {"name": "far"}});
    assert_eq!(as_node(&cluster, "far", Method::POST, "/api/v1/nodes", &body).await.0, 201);
    let status = async |machine: &str| {
        let body = json!({"status": {"nodeInfo": {"machineID": machine}}});
        as_node(&cluster, "far", Method::PATCH, "/api/v1/nodes/far/status", &body).await
    };
    let leases = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
    let heard = |at: &str| json!({"spec": {"renewTime": at, "leaseDurationSeconds": 40, "holderIdentity": "far"}});
    assert_eq!(status("one").await.0, 200);
    assert_eq!(status("two").await.0, 200, "nothing was heard of it");
    let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.000000Z").to_string();
    let mut lease = heard(&now);
    lease["metadata"] = json!({"name": "far"});
    assert_eq!(as_node(&cluster, "far", Method::POST, leases, &lease).await.0, 201);
    assert_refused(status("one").await, "node \"far\" is another machine: its machineID is \"two\"");
    assert_eq!(status("two").await.0, 200);
    let path = format!("{leases}/far");
    assert_eq!(as_node(&cluster, "far", Method::PATCH, &path, &heard("2024-01-01T00:00:00.000000Z")).await.0, 200);
    assert_eq!(status("one").await.0, 200, "nothing was heard of it for long");
}

#[tokio::test]
async fn a_node_that_joined_has_a_block_of_addresses_that_nodes_get_and_no_other_has() {
    let cluster = Cluster::new().await;
    let create = async |node: &str, spec: Value| {
        let body = json!({"metadata": {"name": node}, "spec": spec});
        as_node(&cluster, node, Method::POST, "/api/v1/nodes", &body).await
    };
    for spec in [
        json!({"podCIDR": "128.0.0.0/1"}),
        json!({"podCIDRs": ["10.42.128.0/17"]}),
        json!({"podCIDR": "10.42.0.0/21"}),
        json!({"podCIDR": "128.0.0.0/1", "podCIDRs": ["10.42.248.0/21"]}),
        json!({"podCIDRs": ["10.42.248.0/21", "fd42::/64"]}),
    ] {
        assert_refused(create("far", spec).await, "nodes that join get no such block");
    }
    // At once, and one gets it.
    let names: Vec<String> = (0..8).map(|number| format!("n{number}")).collect();
    let all = names.iter().map(|name| create(name, json!({"podCIDR": "10.42.248.0/21"})));
    let answers = futures::future::join_all(all).await;
    let (won, lost): (Vec<_>, Vec<_>) = answers.into_iter().partition(|(code, _)| *code == 201);
    assert_eq!((won.len(), won[0].1["spec"]["podCIDRs"].clone()), (1, json!(["10.42.248.0/21"])));
    for answer in lost {
        assert_refused(answer, "has addresses of 10.42.248.0/21 for its pods");
    }
    assert_eq!(create("late", json!({})).await.0, 201);
    let change = async |spec: Value| {
        as_node(&cluster, "late", Method::PATCH, "/api/v1/nodes/late", &json!({"spec": spec})).await
    };
    assert_refused(change(json!({"podCIDR": "10.42.248.0/21"})).await, "has addresses of 10.42.248.0/21");
    assert_refused(change(json!({"podCIDR": "0.0.0.0/0"})).await, "no such block");
    assert_eq!(change(json!({"podCIDR": "10.42.240.0/21"})).await.0, 200);
    assert_ne!(change(json!({"podCIDR": "10.42.248.0/21"})).await.0, 200, "for good");
    // Who gives blocks out is told, too.
    make(&cluster, "/api/v1/nodes", &json!({"metadata": {"name": "given"}})).await;
    let rules = json!([{"apiGroups": [""], "resources": ["nodes"], "verbs": ["patch"]}]);
    let giver = allow_everywhere(&cluster, "giver", &rules).await;
    let block = json!({"spec": {"podCIDR": "10.42.240.0/22"}});
    let answer = send(&giver, Method::PATCH, "/api/v1/nodes/given", &[], &block).await;
    assert_refused(answer, "has addresses of 10.42.240.0/22");
}

#[tokio::test]
async fn a_node_asks_for_no_certificate_of_another() {
    use base64::Engine as _;
    let cluster = Cluster::new().await;
    let node = cluster.gateway.client("system:node:n", &["system:nodes"]);
    let ask = async |name: &str, signer: &str, names: &[&str]| {
        let mut parameters = rcgen::CertificateParams::default();
        parameters.distinguished_name = rcgen::DistinguishedName::new();
        parameters.distinguished_name.push(rcgen::DnType::OrganizationName, "system:nodes");
        let types = [rcgen::DnType::CommonName, rcgen::DnType::CustomDnType(vec![2, 5, 4, 3])];
        for (kind, name) in types.into_iter().zip(names) {
            parameters.distinguished_name.push(kind, *name);
        }
        let key = rcgen::KeyPair::generate().expect("a key");
        let pem = parameters.serialize_request(&key).and_then(|request| request.pem()).expect("a request");
        let request = base64::engine::general_purpose::STANDARD.encode(pem);
        let body = json!({"metadata": {"name": name}, "spec": {"request": request, "signerName": signer,
            "usages": ["digital signature", "client auth"]}});
        post(&node, "/apis/certificates.k8s.io/v1/certificatesigningrequests", &body).await
    };
    for (index, signer) in
        ["kubernetes.io/kubelet-serving", "kubernetes.io/kube-apiserver-client-kubelet"].into_iter().enumerate()
    {
        let (code, refused) = ask("other", signer, &["system:node:m"]).await;
        assert_eq!(code, 403, "{signer}");
        let why = "can only create a node CSR with CN=system:node:n";
        assert!(refused["message"].as_str().is_some_and(|text| text.ends_with(why)), "{refused}");
        assert_eq!(ask("two", signer, &["system:node:n", "system:node:m"]).await.0, 403);
        let first = "kube-apiserver-kubelet-client";
        assert_eq!(ask("first", signer, &[first, "system:node:n"]).await.0, 403, "one name, wherever it stands");
        assert_eq!(ask(&format!("own-{index}"), signer, &["system:node:n"]).await.0, 201);
    }
    assert_eq!(ask("elsewhere", "a.example/signer", &["anybody"]).await.0, 201);
}

#[tokio::test]
async fn a_token_in_a_secret_holds_as_long_as_the_secret() {
    let cluster = Cluster::new().await;
    make(&cluster, "/api/v1/namespaces/default/serviceaccounts", &json!({"metadata": {"name": "robot"}})).await;
    let secret = json!({"metadata": {"name": "t", "annotations": {"kubernetes.io/service-account.name": "robot"}},
        "type": "kubernetes.io/service-account-token"});
    make(&cluster, "/api/v1/namespaces/default/secrets", &secret).await;
    let path = "/api/v1/namespaces/default/secrets/t";
    let filled = async {
        loop {
            let (_, secret) = send(&cluster.admin(), Method::GET, path, &[], &Value::Null).await;
            if let Some(token) = secret["data"]["token"].as_str() {
                return token.to_owned();
            }
            tokio::task::yield_now().await;
        }
    };
    let token = tokio::time::timeout(std::time::Duration::from_secs(10), filled).await.expect("soon");
    let token = String::from_utf8(base64_decode(&token)).expect("text");
    let review = async || {
        let body = json!({"spec": {"token": token}});
        post(&cluster.admin(), "/apis/authentication.k8s.io/v1/tokenreviews", &body).await.1
    };
    let answer = review().await;
    assert_eq!(answer["status"]["authenticated"], true, "{answer}");
    assert_eq!(answer["status"]["user"]["username"], "system:serviceaccount:default:robot");
    assert_eq!(send(&cluster.admin(), Method::DELETE, path, &[], &Value::Null).await.0, 200);
    let answer = review().await;
    assert_eq!(answer["status"], json!({"user": {}, "error": "invalid bearer token"}));
}

fn base64_decode(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0u32, 0);
    for c in text.bytes().filter(|c| *c != b'=') {
        let value = match c {
            b'A'..=b'Z' => c - b'A',
            b'a'..=b'z' => c - b'a' + 26,
            b'0'..=b'9' => c - b'0' + 52,
            b'+' => 62,
            _ => 63,
        };
        bits = bits << 6 | u32::from(value);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff).expect("a byte"));
        }
    }
    bytes
}
