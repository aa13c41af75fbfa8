//! Questions that leave nothing behind: who am I, whose token is this, and may somebody do something.

mod access;
mod rules;
mod token;

use std::sync::Arc;

use axum::response::Response;
use bytes::Bytes;
use carob_api::decode;
use carob_api::kind::KindRef;
use carob_api::status::Status;
use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::authn::Identity;
use crate::call::Call;
use crate::handlers::create;
use crate::negotiate::Accept;
use crate::objects;
use crate::options::{WriteOptions, WriteVerb};
use crate::query::Query;
use crate::request::ResourcePath;
use crate::{Server, response};

/// The reviews that are answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    SelfSubject,
    Token,
    Access,
    LocalAccess,
    SelfAccess,
    SelfRules,
}

const QUESTIONS: [(&str, &str, Question); 6] = [
    ("authentication.k8s.io", "selfsubjectreviews", Question::SelfSubject),
    ("authentication.k8s.io", "tokenreviews", Question::Token),
    ("authorization.k8s.io", "subjectaccessreviews", Question::Access),
    ("authorization.k8s.io", "localsubjectaccessreviews", Question::LocalAccess),
    ("authorization.k8s.io", "selfsubjectaccessreviews", Question::SelfAccess),
    ("authorization.k8s.io", "selfsubjectrulesreviews", Question::SelfRules),
];

/// A review that is to be answered.
pub(crate) struct Review {
    question: Question,
    kind: KindRef,
    namespace: Option<String>,
}

impl Review {
    /// The review of a path, if it leads to one.
    pub fn of(server: &Server, path: &ResourcePath) -> Option<Self> {
        let found = QUESTIONS.iter().find(|(group, plural, _)| *group == path.group && *plural == path.resource);
        let (_, _, question) = found?;
        let fits = path.subresource.is_none() && path.namespace.is_some() == (*question == Question::LocalAccess);
        let kind = server.kind(&path.group, &path.version, &path.resource).filter(|_| fits)?;
        Some(Self { question: *question, kind, namespace: path.namespace.clone() })
    }

    /// Answers it.
    pub async fn answer(
        self,
        server: &Arc<Server>,
        identity: &Identity,
        headers: &HeaderMap,
        query: Query,
        body: &Bytes,
    ) -> Result<Response, Status> {
        let accept = Accept::of_questions(headers)?;
        let mut call = Call::new(Arc::clone(server), self.kind, identity.clone(), headers.clone(), accept);
        call.namespace = self.namespace;
        call.query = query;
        let options = WriteOptions::read(&call, WriteVerb::Create)?;
        let mut review = create::decode_body(&call, body, &options)?;
        create::check_namespace(&call, &review)?;
        decode::normalize(&call.kind, &mut review);
        let answer = match self.question {
            Question::SelfSubject => who_am_i(identity),
            Question::Token => token::review(&call, review).await?,
            Question::Access => access::of_anybody(&call, review).await?,
            Question::LocalAccess => access::in_namespace(&call, review).await?,
            Question::SelfAccess => access::of_oneself(&call, review).await?,
            Question::SelfRules => rules::of_oneself(&call, &review)?,
        };
        let mut answer = call.answer(StatusCode::CREATED, response::to_json(&answer))?;
        response::warn(answer.headers_mut(), &call.take_warnings());
        Ok(answer)
    }
}

fn who_am_i(identity: &Identity) -> Value {
    json!({
        "kind": "SelfSubjectReview",
        "apiVersion": "authentication.k8s.io/v1",
        "metadata": { "creationTimestamp": objects::timestamp(Timestamp::now()) },
        "status": { "userInfo": user_info(identity) },
    })
}

/// An identity as `authentication.k8s.io/v1` UserInfo.
pub(crate) fn user_info(identity: &Identity) -> Value {
    let mut user = Map::new();
    user.insert("username".to_owned(), identity.user.as_str().into());
    if !identity.uid.is_empty() {
        user.insert("uid".to_owned(), identity.uid.as_str().into());
    }
    if !identity.groups.is_empty() {
        user.insert("groups".to_owned(), identity.groups.clone().into());
    }
    if !identity.extra.is_empty() {
        user.insert("extra".to_owned(), json!(identity.extra));
    }
    Value::Object(user)
}
