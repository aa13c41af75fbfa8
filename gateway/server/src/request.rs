//! What a request is about, read from its method and path alone: the verb, and the resource or other path.

use http::Method;

use crate::query::Query;

/// A request as authorization and the metrics see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RequestInfo {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; for other paths the method in
    /// lower case.
    pub verb: &'static str,
    /// What it is about.
    pub target: Target,
}

/// What a request is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// Objects: a path below `/api/VERSION/` or `/apis/GROUP/VERSION/`.
    Resource(ResourcePath),
    /// Any other path.
    Path(String),
}

/// The parts of an object's path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct ResourcePath {
    pub group: String,
    pub version: String,
    pub namespace: Option<String>,
    pub resource: String,
    pub name: Option<String>,
    pub subresource: Option<String>,
    /// Whether the path goes on behind the subresource.
    pub excess: bool,
}

/// Paths below a namespace that belong to the Namespace itself.
const NAMESPACE_SUBRESOURCES: [&str; 2] = ["status", "finalize"];

impl RequestInfo {
    /// Reads a request. `path` is not decoded yet.
    pub fn parse(method: &Method, path: &str, query: &Query) -> Self {
        match ResourcePath::parse(path) {
            Some(target) => Self { verb: verb(method, &target, query), target: Target::Resource(target) },
            None => Self { verb: plain_verb(method), target: Target::Path(path.to_owned()) },
        }
    }
}

impl ResourcePath {
    fn parse(path: &str) -> Option<Self> {
        let mut segments = path.strip_prefix('/')?.split('/').filter(|segment| !segment.is_empty());
        let group = match segments.next()? {
            "api" => "",
            "apis" => segments.next()?,
            _ => return None,
        };
        let version = segments.next()?;
        let mut rest: Vec<String> = segments.map(percent_decode).collect::<Option<_>>()?;
        if rest.is_empty() {
            return None;
        }
        let mut namespace = None;
        let about_namespace = rest[0] == "namespaces"
            && (rest.len() < 3 || (rest.len() == 3 && NAMESPACE_SUBRESOURCES.contains(&rest[2].as_str())));
        if rest[0] == "namespaces" && !about_namespace {
            rest.remove(0);
            namespace = Some(rest.remove(0));
        }
        let mut rest = rest.into_iter();
        Some(Self {
            group: group.to_owned(),
            version: version.to_owned(),
            namespace,
            resource: rest.next()?,
            name: rest.next(),
            subresource: rest.next(),
            excess: rest.next().is_some(),
        })
    }
}

fn verb(method: &Method, target: &ResourcePath, query: &Query) -> &'static str {
    match *method {
        Method::GET | Method::HEAD if target.name.is_some() => "get",
        Method::GET | Method::HEAD if query.is_set("watch") => "watch",
        Method::GET | Method::HEAD => "list",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if target.name.is_some() => "delete",
        Method::DELETE => "deletecollection",
        _ => plain_verb(method),
    }
}

fn plain_verb(method: &Method) -> &'static str {
    match *method {
        Method::GET => "get",
        Method::HEAD => "head",
        Method::POST => "post",
        Method::PUT => "put",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        Method::OPTIONS => "options",
        _ => "other",
    }
}

/// `%2F` and the like; none if it isn't UTF-8.
pub(crate) fn percent_decode(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%'
            && let [high, low, behind @ ..] = tail
            && let (Some(high), Some(low)) = (char::from(*high).to_digit(16), char::from(*low).to_digit(16))
        {
            bytes.push(u8::try_from(high * 16 + low).ok()?);
            rest = behind;
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &Method, path: &str, query: &str) -> RequestInfo {
        RequestInfo::parse(method, path, &Query::parse(query))
    }

    fn resource(info: &RequestInfo) -> &ResourcePath {
        match &info.target {
            Target::Resource(resource) => resource,
            Target::Path(path) => panic!("{path} is no resource"),
        }
    }

    #[test]
    fn a_namespaced_object_is_read_from_its_path() {
        let info = parse(&Method::GET, "/apis/apps/v1/namespaces/ns/deployments/web/scale", "");
        assert_eq!(info.verb, "get");
        assert_eq!(
            resource(&info),
            &ResourcePath {
                group: "apps".into(),
                version: "v1".into(),
                namespace: Some("ns".into()),
                resource: "deployments".into(),
                name: Some("web".into()),
                subresource: Some("scale".into()),
                excess: false,
            }
        );
    }

    #[test]
    fn namespaces_are_objects_themselves_and_have_subresources() {
        let info = parse(&Method::PUT, "/api/v1/namespaces/x/finalize", "");
        let target = resource(&info);
        assert_eq!((target.resource.as_str(), target.name.as_deref()), ("namespaces", Some("x")));
        assert_eq!(target.subresource.as_deref(), Some("finalize"));
        assert_eq!(target.namespace, None);
        let info = parse(&Method::GET, "/api/v1/namespaces/x/pods", "");
        assert_eq!(resource(&info).namespace.as_deref(), Some("x"));
        assert_eq!(info.verb, "list");
    }

    #[test]
    fn verbs_follow_the_method_the_name_and_the_watch_parameter() {
        for (method, path, query, verb) in [
            (Method::GET, "/api/v1/pods", "", "list"),
            (Method::GET, "/api/v1/pods", "watch=1", "watch"),
            (Method::GET, "/api/v1/pods", "watch=false", "list"),
            (Method::DELETE, "/api/v1/namespaces/n/pods", "", "deletecollection"),
            (Method::DELETE, "/api/v1/namespaces/n/pods/p", "", "delete"),
            (Method::POST, "/api/v1/namespaces/n/pods", "", "create"),
            (Method::GET, "/version", "", "get"),
        ] {
            assert_eq!(parse(&method, path, query).verb, verb, "{path}?{query}");
        }
    }

    #[test]
    fn an_encoded_slash_stays_inside_a_name() {
        let info = parse(&Method::GET, "/api/v1/namespaces/n/pods/a%2Fb", "");
        assert_eq!(resource(&info).name.as_deref(), Some("a/b"));
    }
}
