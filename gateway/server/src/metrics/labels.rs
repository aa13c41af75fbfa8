//! What a request is called in metrics. Only what is known gets into labels: whoever asks for nonsense cannot make the
//! metrics grow.

use carob_api::kind::Kind;
use http::header::CONTENT_TYPE;
use http::request::Parts;
use prometheus_client::encoding::EncodeLabelSet;

use crate::query::Query;
use crate::request::{RequestInfo, Target};

/// Subresources that are connections.
const CONNECTIONS: [&str; 5] = ["attach", "exec", "log", "portforward", "proxy"];

/// What a request was.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct RequestLabels {
    pub verb: &'static str,
    pub dry_run: &'static str,
    pub group: &'static str,
    pub version: &'static str,
    pub resource: &'static str,
    pub subresource: &'static str,
    pub scope: &'static str,
    pub component: &'static str,
}

/// What a request was, and how it was answered.
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub(crate) struct Answered {
    #[prometheus(flatten)]
    pub request: RequestLabels,
    pub code: u16,
}

impl Default for RequestLabels {
    fn default() -> Self {
        Self {
            verb: "other",
            dry_run: "",
            group: "",
            version: "",
            resource: "",
            subresource: "",
            scope: "",
            component: "apiserver",
        }
    }
}

impl RequestLabels {
    /// The labels of a request for objects of `kind`, or for another path.
    pub fn of(info: &RequestInfo, kind: Option<&Kind>, parts: &Parts, query: &Query) -> Self {
        let verb = match info.verb {
            "get" | "head" => "GET",
            "list" => "LIST",
            "watch" => "WATCH",
            "create" | "post" => "POST",
            "update" | "put" => "PUT",
            "patch" if is_apply(parts) => "APPLY",
            "patch" => "PATCH",
            "delete" => "DELETE",
            "deletecollection" => "DELETECOLLECTION",
            _ => "other",
        };
        let dry_run = if query.text("dryRun") == Some("All") { "All" } else { "" };
        let mut labels = Self { verb, dry_run, ..Self::default() };
        let (Target::Resource(path), Some(kind)) = (&info.target, kind) else { return labels };
        (labels.group, labels.version, labels.resource) = (kind.group, kind.version, kind.plural);
        labels.scope = match (&path.name, &path.namespace) {
            _ if path.name.is_some() || info.verb == "create" => "resource",
            (_, Some(_)) => "namespace",
            _ => "cluster",
        };
        if let Some(wanted) = &path.subresource
            && let Some(known) = kind.subresources.iter().find(|known| known.name == *wanted)
        {
            labels.subresource = known.name;
            if CONNECTIONS.contains(&known.name) {
                labels.verb = "CONNECT";
            }
        }
        labels
    }

    /// Whether the request ends when its client wants it to.
    pub fn is_long_running(&self) -> bool {
        matches!(self.verb, "WATCH" | "CONNECT")
    }
}

fn is_apply(parts: &Parts) -> bool {
    parts.headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/apply-patch"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use carob_api::kinds::Registry;
    use http::Request;

    fn labels(method: &str, uri: &str, content_type: &str) -> RequestLabels {
        let request = Request::builder().method(method).uri(uri).header(CONTENT_TYPE, content_type).body(());
        let (parts, ()) = request.expect("a request").into_parts();
        let query = Query::parse(parts.uri.query().unwrap_or_default());
        let info = RequestInfo::parse(&parts.method, parts.uri.path(), &query);
        let registry = Registry::builtin();
        let kind = match &info.target {
            Target::Resource(path) => registry.by_resource(&path.group, &path.version, &path.resource).cloned(),
            Target::Path(_) => None,
        };
        RequestLabels::of(&info, kind.as_deref(), &parts, &query)
    }

    #[test]
    fn verbs_scopes_and_subresources_are_named_as_in_kubernetes() {
        let pods = "/api/v1/namespaces/n/pods";
        for (method, uri, verb, scope, subresource) in [
            ("GET", "/api/v1/pods", "LIST", "cluster", ""),
            ("GET", pods, "LIST", "namespace", ""),
            ("GET", "/api/v1/namespaces/n/pods?watch=1", "WATCH", "namespace", ""),
            ("POST", pods, "POST", "resource", ""),
            ("DELETE", pods, "DELETECOLLECTION", "namespace", ""),
            ("PUT", "/api/v1/namespaces/n/pods/p/status", "PUT", "resource", "status"),
            ("GET", "/api/v1/namespaces/n/pods/p/log", "CONNECT", "resource", "log"),
            ("GET", "/api/v1/namespaces/n/pods/p/nonsense", "GET", "resource", ""),
        ] {
            let labels = labels(method, uri, "application/json");
            assert_eq!((labels.verb, labels.scope, labels.subresource), (verb, scope, subresource), "{method} {uri}");
        }
        assert_eq!(labels("PATCH", "/api/v1/namespaces/n", "application/apply-patch+yaml").verb, "APPLY");
        assert_eq!(labels("POST", "/api/v1/namespaces?dryRun=All", "application/json").dry_run, "All");
        let unknown = labels("GET", "/apis/nonsense/v1/things", "application/json");
        assert_eq!((unknown.resource, unknown.scope), ("", ""));
    }
}
