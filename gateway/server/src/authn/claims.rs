//! From the claims of a verified token to a user: by names of claims, or by CEL expressions over `claims`; and the rules
//! that claims and user must pass (`AuthenticationConfiguration` of `apiserver.config.k8s.io/v1`).

use carob_api::cel::{self, Budget, Program, Scope};
use serde_json::{Map, Value, json};

use super::Identity;
use crate::settings::{self, ClaimMappings, ClaimRule, JwtSettings, Mapping, UserRule};

/// The variable of expressions about claims.
const CLAIMS: &str = "claims";
/// The variable of expressions about the user that came of them.
const USER: &str = "user";

/// How a provider's claims are read.
pub(super) struct Reading {
    username: Source,
    groups: Option<Source>,
    uid: Option<Source>,
    extra: Vec<(String, Program)>,
    rules: Vec<Rule>,
    users: Vec<Check>,
}

/// Where a value comes from.
enum Source {
    /// A claim, and what is put before its value.
    Claim(String, String),
    Expression(Program),
}

/// What claims must fulfil.
enum Rule {
    Value(ClaimRule),
    Check(Check),
}

/// An expression that must be true.
struct Check {
    text: String,
    message: String,
    program: Program,
}

impl Reading {
    /// As settings describe it.
    pub fn new(settings: &JwtSettings) -> Result<Self, settings::Error> {
        let mappings = &settings.claim_mappings;
        let username = Source::of("claimMappings.username", &mappings.username)?;
        let Some(username) = username else {
            return Err(wrong("claimMappings.username", "a claim or an expression is required"));
        };
        let rules = settings.claim_validation_rules.iter().map(Rule::new).collect::<Result<Vec<_>, _>>()?;
        let reading = Self {
            username,
            groups: mappings
                .groups
                .as_ref()
                .map(|groups| Source::of("claimMappings.groups", groups))
                .transpose()?
                .flatten(),
            uid: match &mappings.uid {
                Some(uid) => {
                    let uid = Mapping { prefix: (!uid.claim.is_empty()).then(String::new), ..uid.clone() };
                    Source::of("claimMappings.uid", &uid)?
                }
                None => None,
            },
            extra: extra(mappings)?,
            rules,
            users: settings.user_validation_rules.iter().map(Check::of_user).collect::<Result<_, _>>()?,
        };
        reading.confirm_mail(settings)?;
        Ok(reading)
    }

    /// Whoever takes the address of a mail as name must look whether it was verified.
    fn confirm_mail(&self, settings: &JwtSettings) -> Result<(), settings::Error> {
        let Source::Expression(_) = &self.username else { return Ok(()) };
        if !settings.claim_mappings.username.expression.contains("claims.email") {
            return Ok(());
        }
        let mappings = &settings.claim_mappings;
        let texts = [&mappings.username.expression].into_iter();
        let texts = texts.chain(mappings.extra.iter().map(|extra| &extra.value_expression));
        let mut texts = texts.chain(settings.claim_validation_rules.iter().map(|rule| &rule.expression));
        if texts.any(|text| text.contains("claims.email_verified") || text.contains("claims.?email_verified")) {
            return Ok(());
        }
        let why = "claims.email_verified must be used in claimMappings.username.expression or \
                   claimMappings.extra[*].valueExpression or claimValidationRules[*].expression when claims.email is used \
                   in claimMappings.username.expression";
        Err(wrong("claimMappings.username.expression", why))
    }

    /// The user that verified claims speak of.
    pub fn user(&self, claims: &Map<String, Value>) -> Result<Identity, String> {
        let value = cel::from_json(&Value::Object(claims.clone()));
        let variables = [(CLAIMS, value)];
        let root = Scope::root();
        let scope = root.with_all(&variables);
        let mut budget = Budget::new(cel::PER_OBJECT);
        for rule in &self.rules {
            rule.confirm(claims, &scope, &mut budget)?;
        }
        let mut evaluate = |program: &Program| {
            program
                .evaluate(&scope, &mut budget)
                .map(|value| cel::to_json(&value))
                .map_err(|error| format!("oidc: {error}"))
        };
        let name = match &self.username {
            Source::Claim(claim, prefix) => format!("{prefix}{}", name_in(claims, claim)?),
            Source::Expression(program) => match evaluate(program)? {
                Value::String(name) if !name.is_empty() => name,
                Value::String(_) => return Err("oidc: empty username".to_owned()),
                _ => return Err("oidc: error evaluating username claim expression: no text".to_owned()),
            },
        };
        let groups = match &self.groups {
            None => Vec::new(),
            Some(Source::Claim(claim, prefix)) => {
                let names = texts(claims.get(claim).unwrap_or(&Value::Null)).ok_or("oidc: groups must be texts")?;
                names.into_iter().map(|name| format!("{prefix}{name}")).collect()
            }
            Some(Source::Expression(program)) => {
                let names = texts(&evaluate(program)?).ok_or("oidc: groups must be texts")?;
                names.into_iter().filter(|name| !name.is_empty()).collect()
            }
        };
        let uid = match &self.uid {
            None => String::new(),
            Some(Source::Claim(claim, _)) => text_in(claims, claim)?.to_owned(),
            Some(Source::Expression(program)) => match evaluate(program)? {
                Value::String(uid) => uid,
                _ => return Err("oidc: error evaluating uid claim expression: no text".to_owned()),
            },
        };
        let mut extra = std::collections::BTreeMap::new();
        for (key, program) in &self.extra {
            let values = texts(&evaluate(program)?).ok_or_else(|| format!("oidc: extra {key} must be texts"))?;
            let values: Vec<String> = values.into_iter().filter(|value| !value.is_empty()).collect();
            if !values.is_empty() {
                extra.insert(key.clone(), values);
            }
        }
        let known = json!({ "username": name, "uid": uid, "groups": groups, "extra": extra });
        let variables = [(USER, cel::from_json(&known))];
        for check in &self.users {
            check.confirm("user validation", &root.with_all(&variables), &mut budget)?;
        }
        let mut identity = Identity::authenticated(&name, groups);
        (identity.uid, identity.extra) = (uid, extra);
        Ok(identity)
    }
}

impl Source {
    /// A claim with its prefix, or an expression; none if neither is given.
    fn of(field: &str, mapping: &Mapping) -> Result<Option<Self>, settings::Error> {
        match (mapping.claim.as_str(), mapping.expression.as_str(), &mapping.prefix) {
            ("", "", None) => Ok(None),
            ("", expression, None) => Ok(Some(Self::Expression(compile(field, expression, CLAIMS)?))),
            ("", _, Some(_)) => Err(wrong(field, "prefix can't be set together with an expression")),
            (claim, "", Some(prefix)) => Ok(Some(Self::Claim(claim.to_owned(), prefix.clone()))),
            (_, "", None) => Err(wrong(field, "prefix is required when claim is set; it may be empty")),
            _ => Err(wrong(field, "claim and expression can't both be set")),
        }
    }
}

impl Rule {
    fn new(rule: &ClaimRule) -> Result<Self, settings::Error> {
        const FIELD: &str = "claimValidationRules";
        match (rule.claim.as_str(), rule.expression.as_str()) {
            ("", "") => Err(wrong(FIELD, "claim or expression is required")),
            ("", _) if !rule.required_value.is_empty() => {
                Err(wrong(FIELD, "requiredValue can't be set together with an expression"))
            }
            ("", text) => Ok(Self::Check(Check::new(FIELD, text, &rule.message, CLAIMS)?)),
            (_, "") if rule.message.is_empty() => Ok(Self::Value(rule.clone())),
            (_, "") => Err(wrong(FIELD, "message can't be set together with a claim")),
            _ => Err(wrong(FIELD, "claim and expression can't both be set")),
        }
    }

    fn confirm(&self, claims: &Map<String, Value>, scope: &Scope<'_>, budget: &mut Budget) -> Result<(), String> {
        let rule = match self {
            Self::Check(check) => return check.confirm("claim validation", scope, budget),
            Self::Value(rule) => rule,
        };
        match claims.get(&rule.claim).and_then(Value::as_str) {
            Some(value) if value == rule.required_value => Ok(()),
            None => Err(format!("oidc: required claim {} not present in ID token", rule.claim)),
            Some(value) => Err(format!(
                "oidc: required claim {} value does not match. Got = {value}, want = {}",
                rule.claim, rule.required_value
            )),
        }
    }
}

impl Check {
    fn of_user(rule: &UserRule) -> Result<Self, settings::Error> {
        Self::new("userValidationRules", &rule.expression, &rule.message, USER)
    }

    fn new(field: &str, text: &str, message: &str, variable: &str) -> Result<Self, settings::Error> {
        let program = compile(field, text, variable)?;
        Ok(Self { text: text.to_owned(), message: message.to_owned(), program })
    }

    fn confirm(&self, what: &str, scope: &Scope<'_>, budget: &mut Budget) -> Result<(), String> {
        match self.program.evaluate(scope, budget) {
            Ok(cel::Value::Bool(true)) => Ok(()),
            Ok(_) if !self.message.is_empty() => {
                Err(format!("oidc: error evaluating {what} expression: {}", self.message))
            }
            Ok(_) => {
                Err(format!("oidc: error evaluating {what} expression: validation expression '{}' failed", self.text))
            }
            Err(error) => Err(format!("oidc: error evaluating {what} expression: {error}")),
        }
    }
}

fn extra(mappings: &ClaimMappings) -> Result<Vec<(String, Program)>, settings::Error> {
    const FIELD: &str = "claimMappings.extra";
    let mut read: Vec<(String, Program)> = Vec::new();
    for mapping in &mappings.extra {
        let key = &mapping.key;
        let domain = key.split('/').next().unwrap_or_default();
        let reserved = ["k8s.io", "kubernetes.io"].iter().any(|d| domain == *d || domain.ends_with(&format!(".{d}")));
        if !key.contains('/') || reserved || key.to_lowercase() != *key {
            let why = format!("{key:?} must be a domain's path in lower case, and not one of kubernetes.io or k8s.io");
            return Err(wrong(FIELD, &why));
        }
        if read.iter().any(|(known, _)| known == key) {
            return Err(wrong(FIELD, &format!("{key:?} is given twice")));
        }
        read.push((key.clone(), compile(FIELD, &mapping.value_expression, CLAIMS)?));
    }
    Ok(read)
}

fn compile(field: &str, text: &str, variable: &str) -> Result<Program, settings::Error> {
    if text.is_empty() {
        return Err(wrong(field, "an expression is required"));
    }
    Program::compile(text, &[variable]).map_err(|mistake| wrong(field, &mistake))
}

fn wrong(field: &str, why: &str) -> settings::Error {
    settings::Error::Invalid { what: format!("authentication.jwt: {field}"), why: why.to_owned() }
}

fn text_in<'a>(claims: &'a Map<String, Value>, claim: &str) -> Result<&'a str, String> {
    let value = claims.get(claim).and_then(Value::as_str).filter(|value| !value.is_empty());
    value.ok_or_else(|| format!("oidc: the claim {claim:?} is missing or no text"))
}

fn name_in<'a>(claims: &'a Map<String, Value>, claim: &str) -> Result<&'a str, String> {
    if claim == "email" && claims.get("email_verified").is_some_and(|verified| *verified != Value::Bool(true)) {
        return Err("oidc: email not verified".to_owned());
    }
    text_in(claims, claim)
}

/// A text or a list of texts; nothing is none of them.
fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::Null => Some(Vec::new()),
        Value::String(one) => Some(vec![one.clone()]),
        Value::Array(several) => several.iter().map(|text| text.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(settings: Value) -> Result<Reading, String> {
        let settings: JwtSettings = serde_json::from_value(settings).expect("settings");
        Reading::new(&settings).map_err(|error| error.to_string())
    }

    fn user(settings: Value, claims: &Value) -> Result<Identity, String> {
        reading(settings).expect("settings").user(claims.as_object().expect("claims"))
    }

    #[test]
    fn claims_become_a_user_and_prefixes_keep_system_groups_out_of_reach() {
        let settings = json!({
            "claimValidationRules": [{"claim": "hd", "requiredValue": "example.com"}],
            "claimMappings": {
                "username": {"claim": "sub", "prefix": "id:"},
                "groups": {"claim": "roles", "prefix": "id:"},
                "extra": [{"key": "example.com/team", "valueExpression": "claims.team"}],
            },
        });
        let given = json!({"sub": "alice", "roles": ["dev", "system:masters"], "hd": "example.com", "team": "a"});
        let identity = user(settings.clone(), &given).expect("a user");
        assert_eq!(identity.user, "id:alice");
        assert_eq!(identity.groups, ["id:dev", "id:system:masters", "system:authenticated"]);
        assert_eq!(identity.extra["example.com/team"], ["a"]);
        assert!(user(settings.clone(), &json!({"sub": "alice"})).is_err(), "a required claim is missing");
        assert!(user(settings, &json!({"hd": "example.com"})).is_err(), "no name");
    }

    #[test]
    fn expressions_make_users_and_judge_them() {
        let settings = json!({
            "claimValidationRules": [
                {"expression": "claims.exp - claims.nbf <= 86400", "message": "lives too long"},
            ],
            "claimMappings": {
                "username": {"expression": "claims.username + ':external'"},
                "groups": {"expression": "claims.roles.split(',') + (claims.?admin.orValue(false) ? ['admins'] : [])"},
                "uid": {"expression": "claims.sub"},
                "extra": [{"key": "example.com/tenant", "valueExpression": "claims.tenant"}],
            },
            "userValidationRules": [
                {"expression": "!user.username.startsWith('system:')", "message": "reserved"},
                {"expression": "user.groups.all(group, !group.startsWith('system:'))"},
            ],
        });
        let given =
            json!({"username": "bob", "roles": "a,b", "admin": true, "sub": "7", "tenant": "t", "exp": 9, "nbf": 1});
        let bob = user(settings.clone(), &given).expect("bob");
        assert_eq!((bob.user.as_str(), bob.uid.as_str()), ("bob:external", "7"));
        assert_eq!(bob.groups, ["a", "b", "admins", "system:authenticated"]);
        assert_eq!(bob.extra["example.com/tenant"], ["t"]);
        for (claim, value, why) in [
            ("exp", json!(100_000), "lives too long"),
            ("username", json!("system:x"), "reserved"),
            ("roles", json!("system:masters"), "validation expression 'user.groups.all"),
            ("username", Value::Null, "no such overload"),
        ] {
            let mut bad = given.clone();
            bad[claim] = value;
            let told = user(settings.clone(), &bad).expect_err(claim);
            assert!(told.contains(why), "{told}");
        }
    }

    #[test]
    fn settings_that_contradict_themselves_are_refused() {
        let name = json!({"claim": "sub", "prefix": ""});
        for (settings, why) in [
            (json!({}), "a claim or an expression is required"),
            (json!({"claimMappings": {"username": {"claim": "sub"}}}), "prefix is required"),
            (
                json!({"claimMappings": {"username": {"claim": "sub", "prefix": "", "expression": "claims.sub"}}}),
                "both",
            ),
            (json!({"claimMappings": {"username": {"expression": "claims.sub", "prefix": "x"}}}), "prefix can't"),
            (json!({"claimMappings": {"username": {"expression": "other.sub"}}}), "undeclared reference"),
            (
                json!({"claimMappings": {"username": {"expression": "claims.email"}}}),
                "claims.email_verified must be used",
            ),
            (json!({"claimMappings": {"username": name, "extra": [{"key": "x", "valueExpression": "'a'"}]}}), "domain"),
            (json!({"claimMappings": {"username": name}, "userValidationRules": [{"message": "x"}]}), "required"),
        ] {
            let told = reading(settings).err().expect(why);
            assert!(told.contains(why), "{told}");
        }
    }
}
