//! HTTPRoutes and GRPCRoutes, whatever Gateways they belong to.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, Method, StatusCode};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use super::Kind;
use super::filter::{Filters, Problem, Reading};
use crate::gateway_api::{
    BackendRef, GRPCRoute, GrpcMatch, HTTPRoute, HttpMatch, HttpRule, NamedMatch, ParentReference,
};
use crate::route::host::Pattern;
use crate::route::matches::whole;
use crate::route::{Action, Call, Match, PathMatch, Rule, Split, Text};
use crate::state::{Key, State};

/// A route as Gateways see it.
pub struct Route<'a> {
    pub kind: Kind,
    pub kind_name: &'static str,
    pub key: Key,
    pub created: Option<jiff::Timestamp>,
    pub generation: Option<i64>,
    pub parents: &'a [ParentReference],
    pub hosts: Vec<Pattern>,
    pub before: &'a Value,
    pub rules: Vec<(Match, Arc<Rule>)>,
    /// Why none of it is carried out.
    pub accepted: Option<Problem>,
    /// Why some of its rules are not.
    pub dropped: Option<Problem>,
    pub resolved: Option<Problem>,
}

/// What a status is where there was none.
const NOTHING: &Value = &Value::Null;

/// All routes, the oldest first.
pub fn all(state: &State) -> Vec<Route<'_>> {
    let http = state.http_routes.iter().map(|route| of_http(route, state));
    let grpc = state.grpc_routes.iter().map(|route| of_grpc(route, state));
    let mut all: Vec<Route<'_>> = http.chain(grpc).collect();
    all.sort_by_cached_key(|route| (route.created, format!("{}/{}", route.key.namespace, route.key.name)));
    all
}

/// What routes of both kinds have in common.
struct Common<'a> {
    kind: Kind,
    kind_name: &'static str,
    /// Its endpoints speak HTTP/2, whatever their Services say.
    http2: bool,
    metadata: &'a ObjectMeta,
    parents: &'a [ParentReference],
    hostnames: &'a [String],
    status: Option<&'a Value>,
}

impl<'a> Common<'a> {
    /// The route, whose rules are read by `read`. A rule with something that can't be carried out is left out, whole; the
    /// others hold.
    fn route<R>(
        self,
        state: &'a State,
        rules: &[R],
        mut read: impl FnMut(&R, &mut Reading<'a>) -> (Vec<Match>, Rule),
    ) -> Route<'a> {
        let Self { kind, kind_name, http2, metadata, parents, hostnames, status } = self;
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        let mut reading = Reading { state, kind: kind_name, namespace, http2, accepted: None, resolved: None };
        let (mut all, mut bad) = (Vec::new(), Vec::new());
        for (index, rule) in rules.iter().enumerate() {
            let (matches, rule) = read(rule, &mut reading);
            if let Some(problem) = reading.accepted.take() {
                bad.push((index, problem));
                continue;
            }
            let rule = Arc::new(rule);
            all.extend(matches.into_iter().map(|one| (one, Arc::clone(&rule))));
        }
        let is_served = bad.is_empty() || bad.len() < rules.len();
        let first = bad.first().map(|(_, problem)| problem.clone());
        let each = bad.iter().map(|(index, problem)| format!("Dropped Rule spec.rules[{index}]: {}", problem.message));
        let message = each.collect::<Vec<_>>().join("; ");
        let dropped = first.as_ref().map(|problem| Problem::new(problem.reason, message));
        let (accepted, dropped) = if is_served { (None, dropped) } else { (first, None) };
        Route {
            kind,
            kind_name,
            key: Key::new(namespace, metadata.name.as_deref().unwrap_or_default()),
            created: metadata.creation_timestamp.as_ref().map(|time| time.0),
            generation: metadata.generation,
            parents,
            hosts: hostnames.iter().map(|name| Pattern::of_gateway(Some(name))).collect(),
            before: status.unwrap_or(NOTHING),
            rules: all,
            accepted,
            dropped,
            resolved: reading.resolved,
        }
    }
}

/// A rule's matches; without any it takes every request.
fn matches<M>(given: &[M], read: impl FnMut(&M) -> Option<Match>) -> Vec<Match> {
    if given.is_empty() {
        return vec![Match::of_path(PathMatch::prefix("/"))];
    }
    given.iter().filter_map(read).collect()
}

fn of_http<'a>(route: &'a HTTPRoute, state: &'a State) -> Route<'a> {
    let common = Common {
        kind: Kind::HttpRoute,
        kind_name: "HTTPRoute",
        http2: false,
        metadata: &route.metadata,
        parents: &route.spec.parent_refs,
        hostnames: &route.spec.hostnames,
        status: route.status.as_ref(),
    };
    common.route(state, &route.spec.rules, |rule, reading| {
        let made = http_rule(rule, reading);
        (matches(&rule.matches, |one| http_match(one, reading)), made)
    })
}

fn of_grpc<'a>(route: &'a GRPCRoute, state: &'a State) -> Route<'a> {
    let common = Common {
        kind: Kind::GrpcRoute,
        kind_name: "GRPCRoute",
        http2: true,
        metadata: &route.metadata,
        parents: &route.spec.parent_refs,
        hostnames: &route.spec.hostnames,
        status: route.status.as_ref(),
    };
    common.route(state, &route.spec.rules, |rule, reading| {
        let filters = reading.filters(&rule.filters, false);
        let made = forwarding(filters, &rule.backend_refs, reading);
        (matches(&rule.matches, |one| grpc_match(one, reading)), made)
    })
}

fn forwarding(filters: Filters, backends: &[BackendRef], reading: &mut Reading<'_>) -> Rule {
    let targets: Vec<_> = backends.iter().map(|backend| reading.target(backend)).collect();
    let weightless = targets.iter().all(|target| target.weight == 0);
    let action = match filters.redirect {
        _ if filters.broken => Action::Fail(StatusCode::INTERNAL_SERVER_ERROR),
        Some(redirect) => Action::Redirect(redirect),
        None if weightless => Action::Fail(reading.nowhere()),
        None => Action::Forward(Split::new(targets)),
    };
    Rule {
        request: filters.request,
        response: filters.response,
        rewrite: filters.rewrite,
        mirrors: filters.mirrors,
        action,
        timeout: None,
        backend_timeout: None,
    }
}

fn http_rule(rule: &HttpRule, reading: &mut Reading<'_>) -> Rule {
    let filters = reading.filters(&rule.filters, false);
    let mut made = forwarding(filters, &rule.backend_refs, reading);
    let mut limit = |text: &Option<String>| {
        let text = text.as_deref()?;
        let read = duration(text);
        if read.is_none() {
            reading.unsupported_value(format!("{text:?} is no duration"));
        }
        // Zero means that there is no limit, not even the usual one.
        read.map(|limit| if limit.is_zero() { Duration::MAX } else { limit })
    };
    let (whole, backend) = (limit(&rule.timeouts.request), limit(&rule.timeouts.backend_request));
    made.timeout = whole.filter(|limit| *limit < Duration::MAX);
    // Who lets a request take as long as it will lets an endpoint do so.
    made.backend_timeout = backend.or(whole.filter(|limit| *limit == Duration::MAX));
    made
}

/// A duration as the Gateway API writes it: up to four numbers with `h`, `m`, `s` or `ms`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        let unit = &rest[digits..];
        let unit = &unit[..unit.find(|c: char| c.is_ascii_digit()).unwrap_or(unit.len())];
        sum += match unit {
            "h" => Duration::from_secs(3600 * number),
            "m" => Duration::from_secs(60 * number),
            "s" => Duration::from_secs(number),
            "ms" => Duration::from_millis(number),
            _ => return None,
        };
        rest = &rest[digits + unit.len()..];
    }
    (!text.is_empty()).then_some(sum)
}

fn http_match(one: &HttpMatch, reading: &mut Reading<'_>) -> Option<Match> {
    let path = one.path.as_ref();
    let value = path.and_then(|path| path.value.as_deref()).unwrap_or("/");
    let path = match path.and_then(|path| path.kind.as_deref()).unwrap_or("PathPrefix") {
        "Exact" => PathMatch::Exact(value.to_owned()),
        "PathPrefix" => PathMatch::prefix(value),
        "RegularExpression" => PathMatch::Regex(expression(value, reading)?),
        other => {
            reading.unsupported_value(format!("paths are not compared by {other} here"));
            return None;
        }
    };
    let method = match &one.method {
        Some(method) => Some(method.parse::<Method>().ok()?),
        None => None,
    };
    let query: Option<Vec<_>> =
        one.query_params.iter().map(|named| Some((named.name.clone(), text(named, reading)?))).collect();
    Some(Match { path, method, headers: headers(&one.headers, reading)?, query: query? })
}

fn headers(named: &[NamedMatch], reading: &mut Reading<'_>) -> Option<Vec<(HeaderName, Text)>> {
    let mut read: Vec<(HeaderName, Text)> = Vec::new();
    for one in named {
        let name = reading.header(&one.name)?;
        // Of names that differ in case alone, the first counts.
        if !read.iter().any(|(known, _)| *known == name) {
            read.push((name, text(one, reading)?));
        }
    }
    Some(read)
}

fn text(named: &NamedMatch, reading: &mut Reading<'_>) -> Option<Text> {
    match named.kind.as_deref().unwrap_or("Exact") {
        "Exact" => Some(Text::Exact(named.value.clone())),
        "RegularExpression" => expression(&named.value, reading).map(Text::Regex),
        other => {
            reading.unsupported_value(format!("{} is not compared by {other} here", named.name));
            None
        }
    }
}

fn expression(text: &str, reading: &mut Reading<'_>) -> Option<regex::Regex> {
    let read = whole(text);
    if read.is_err() {
        reading.unsupported_value(format!("{text:?} is no regular expression"));
    }
    read.ok()
}

fn grpc_match(one: &GrpcMatch, reading: &mut Reading<'_>) -> Option<Match> {
    let headers = headers(&one.headers, reading)?;
    let asked = one.method.as_ref();
    let written = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let service = asked.and_then(|asked| written(&asked.service));
    let method = asked.and_then(|asked| written(&asked.method));
    let regular = asked.and_then(|asked| asked.kind.as_deref()) == Some("RegularExpression");
    if service.is_none() && method.is_none() {
        return Some(Match { path: PathMatch::prefix("/"), method: None, headers, query: Vec::new() });
    }
    let mut read = |written: &str| {
        if regular { expression(written, reading).map(Text::Regex) } else { Some(Text::Exact(written.to_owned())) }
    };
    let service = match service {
        Some(written) => Some((read(&written)?, written)),
        None => None,
    };
    let method = match method {
        Some(written) => Some((read(&written)?, written)),
        None => None,
    };
    let path = PathMatch::Call(Call::new(service, method));
    Some(Match { path, method: None, headers, query: Vec::new() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_sums_of_units() {
        for (text, milliseconds) in [
            ("0s", Some(0)),
            ("1h30m", Some(5_400_000)),
            ("10s500ms", Some(10_500)),
            ("1d", None),
            ("", None),
            ("5", None),
        ] {
            assert_eq!(duration(text), milliseconds.map(Duration::from_millis), "{text}");
        }
    }
}
