//! One request about objects of one kind, as the handlers see it.

use std::sync::{Arc, Mutex, PoisonError};

use axum::response::Response;
use bytes::Bytes;
use carob_api::kind::{KindRef, Scope};
use carob_api::status::{GroupResource, Status};
use http::header::USER_AGENT;
use http::{HeaderMap, StatusCode};
use serde_json::Value;

use crate::authn::Identity;
use crate::negotiate::{Accept, View};
use crate::query::Query;
use crate::verbatim::Sent;
use crate::{Server, events, objects, response};

/// A request about objects of one kind.
pub(crate) struct Call {
    pub server: Arc<Server>,
    pub kind: KindRef,
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub identity: Identity,
    pub query: Query,
    /// The query as it came.
    pub raw_query: String,
    pub headers: HeaderMap,
    pub accept: Accept,
    /// Data that is kept as it is written.
    pub sent: Sent,
    warnings: Mutex<Vec<String>>,
}

impl Call {
    pub fn new(
        server: Arc<Server>,
        kind: impl Into<KindRef>,
        identity: Identity,
        headers: HeaderMap,
        accept: Accept,
    ) -> Self {
        Self {
            server,
            kind: kind.into(),
            namespace: None,
            name: None,
            identity,
            query: Query::default(),
            raw_query: String::new(),
            headers,
            accept,
            sent: Sent::default(),
            warnings: Mutex::default(),
        }
    }

    /// The same request, as one for another version of the resource.
    pub fn of_kind(&self, kind: &KindRef) -> Self {
        let mut other = Self::new(self.server.clone(), kind, self.identity.clone(), self.headers.clone(), self.accept);
        other.namespace.clone_from(&self.namespace);
        other.name.clone_from(&self.name);
        other.query.clone_from(&self.query);
        other.raw_query.clone_from(&self.raw_query);
        other
    }

    /// `deployments.apps`
    pub fn resource(&self) -> GroupResource {
        GroupResource::new(self.kind.group, self.kind.plural)
    }

    /// `Deployment.apps`, as some conflicts name it; of the group in which objects are stored.
    pub fn group_kind(&self) -> GroupResource {
        let group = self.kind.stored_as.map_or(self.kind.group, |form| form.group);
        GroupResource::new(group, self.kind.kind)
    }

    /// The name in the path; the routes let no call without one through where there must be one.
    pub fn name(&self) -> &str {
        self.name.as_deref().unwrap_or_default()
    }

    /// Where an object of this name is kept.
    pub fn key(&self, name: &str) -> String {
        objects::key(&self.kind, self.namespace.as_deref(), name)
    }

    /// Whether objects of this kind live in namespaces.
    pub fn namespaced(&self) -> bool {
        self.kind.scope == Scope::Namespaced
    }

    /// 404 for the object of the path.
    pub fn not_found(&self) -> Status {
        Status::not_found(&self.resource(), self.name())
    }

    /// Adds a Warning header to the answer.
    pub fn warn(&self, text: impl Into<String>) {
        self.warnings.lock().unwrap_or_else(PoisonError::into_inner).push(text.into());
    }

    /// Adds a note to what the audit log says of this request; only made if there is one.
    #[expect(clippy::unused_self, reason = "it is this request's note, wherever it is kept")]
    pub fn annotate(&self, key: &str, note: impl FnOnce() -> String) {
        crate::audit::annotate(key, note);
    }

    /// The warnings so far.
    pub fn take_warnings(&self) -> Vec<String> {
        std::mem::take(&mut *self.warnings.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Who changes fields, if the client doesn't say so: what its user agent begins with.
    pub fn default_manager(&self) -> String {
        let agent = self.headers.get(USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let program: String = agent.split('/').next().unwrap_or_default().chars().take(128).collect();
        if program.is_empty() { "unknown".to_owned() } else { program }
    }

    /// Whether JSON is written for people: if the client says so, or is a browser or a tool of the command line.
    pub fn is_pretty(&self) -> bool {
        const FOR_PEOPLE: [&str; 3] = ["curl", "Wget", "Mozilla/5.0"];
        if let Some(text) = self.query.text("pretty") {
            return matches!(text, "1" | "t" | "T" | "true" | "TRUE" | "True");
        }
        let agent = self.headers.get(USER_AGENT).and_then(|value| value.to_str().ok()).unwrap_or_default();
        FOR_PEOPLE.iter().any(|prefix| agent.starts_with(prefix))
    }

    /// An object as this kind's version shows it.
    pub fn shown(&self, bytes: &Bytes) -> Result<Value, Status> {
        let mut object = objects::decode(bytes)?;
        events::from_stored(&self.kind, &mut object);
        Ok(object)
    }

    /// The object as it is kept.
    pub fn stored(&self, mut object: Value) -> Value {
        events::to_stored(&self.kind, &mut object);
        object
    }

    /// Stored bytes as this kind's version shows them.
    pub fn present(&self, bytes: &Bytes) -> Result<Bytes, Status> {
        if !events::is_converted(&self.kind) {
            return Ok(bytes.clone());
        }
        Ok(response::to_json(&self.shown(bytes)?))
    }

    /// Answers with one object (the bytes of this kind's version) in the view that the client asked for.
    pub fn answer(&self, code: StatusCode, bytes: Bytes) -> Result<Response, Status> {
        let body = match self.accept.view {
            View::Object => bytes,
            View::Table(version) => {
                let object = objects::decode(&bytes)?;
                let revision = objects::text(&object, "/metadata/resourceVersion");
                let meta = serde_json::json!({ "resourceVersion": revision });
                response::to_json(&crate::handlers::views::table(self, version, &[&object], meta, true)?)
            }
            View::Metadata(version) => {
                response::to_json(&crate::handlers::views::metadata_only(&objects::decode(&bytes)?, version))
            }
            View::MetadataList(_) => {
                return Err(Status::not_acceptable(
                    "you requested PartialObjectMetadataList, but the requested object is not a list",
                ));
            }
        };
        response::object(code, body, self.accept.format, self.is_pretty())
    }
}
