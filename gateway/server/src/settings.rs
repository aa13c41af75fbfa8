//! What a cluster's owner may choose about identity, audit and admission. Read from the file of `--config`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use carob_api::kind::Kind;
use carob_api::kinds;
use serde::Deserialize;
use serde_json::Value;

/// The settings. Unknown ones are refused.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Settings {
    /// Who is known, beside service accounts and holders of certificates.
    pub authentication: AuthenticationSettings,
    /// What is written down of requests.
    pub audit: Option<AuditSettings>,
    /// What namespaces without labels ask of Pods, and who is exempt.
    pub pod_security: PodSecuritySettings,
    /// How much of a limited resource namespaces may use that have no quota for it: the list `limitedResources` of
    /// Kubernetes' `ResourceQuota` admission configuration.
    pub limited_resources: Vec<LimitedResource>,
    /// Versions of groups that are served though they are off by default, as of Kubernetes' `--runtime-config`:
    /// `admissionregistration.k8s.io/v1beta1: true`.
    pub runtime_config: BTreeMap<String, bool>,
    /// How many requests are worked on at a time, shared out by the objects of `flowcontrol.apiserver.k8s.io`.
    pub concurrency: Option<u32>,
}

impl Settings {
    /// The kinds that are off by default and were switched on.
    ///
    /// # Errors
    /// When a version is named that there is none of.
    pub(crate) fn optional_kinds(&self) -> Result<Vec<&'static Kind>, Error> {
        let known = |name: &str| {
            matches!(name, "api/all" | "api/ga" | "api/beta" | "api/alpha")
                || kinds::builtin().chain(kinds::optional()).any(|kind| kind.api_version() == name)
        };
        if let Some(name) = self.runtime_config.keys().find(|name| !known(name)) {
            let why = "is no version of an API group that Carob can serve".to_owned();
            return Err(Error::Invalid { what: format!("runtimeConfig: {name}"), why });
        }
        let is_on = |kind: &&'static Kind| {
            let stage = if kind.version.contains("alpha") { "api/alpha" } else { "api/beta" };
            let names = [kind.api_version(), stage.to_owned(), "api/all".to_owned()];
            names.iter().find_map(|name| self.runtime_config.get(name)).copied().unwrap_or(false)
        };
        Ok(kinds::optional().filter(is_on).collect())
    }
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that they name cannot be read or made.
    #[error("cannot open {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Something in them is wrong.
    #[error("{what}: {why}")]
    Invalid {
        /// What.
        what: String,
        /// What would be right.
        why: String,
    },
}

/// Who is known. The names are those of `apiserver.config.k8s.io/v1` AuthenticationConfiguration.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct AuthenticationSettings {
    /// Whether requests without any credential are let in, as `system:anonymous`.
    pub anonymous: Anonymous,
    /// A file with lines `token,user,uid,"group1,group2"`.
    pub token_file: Option<PathBuf>,
    /// Identity providers.
    pub jwt: Vec<JwtSettings>,
}

/// See [`AuthenticationSettings::anonymous`].
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Anonymous {
    /// They are unless this is false.
    pub enabled: bool,
}

impl Default for Anonymous {
    fn default() -> Self {
        Self { enabled: true }
    }
}

/// An identity provider that speaks OpenID Connect.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct JwtSettings {
    /// Who it is.
    pub issuer: IssuerSettings,
    /// Claims that must have a value.
    pub claim_validation_rules: Vec<ClaimRule>,
    /// How claims become a user.
    pub claim_mappings: ClaimMappings,
    /// What must hold of the user that they became.
    pub user_validation_rules: Vec<UserRule>,
}

/// Who signs tokens.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct IssuerSettings {
    /// The claim `iss`, and where the provider is reached unless `discoveryURL` says otherwise.
    pub url: String,
    /// Where its discovery document is, if not under `url`.
    #[serde(rename = "discoveryURL")]
    pub discovery_url: Option<String>,
    /// A token must be meant for one of these.
    pub audiences: Vec<String>,
    /// `MatchAny`; must be given for several audiences.
    pub audience_match_policy: String,
    /// Authorities of the provider's certificate, PEM; the machine's own if it isn't given.
    pub certificate_authority: Option<String>,
}

/// What claims must fulfil: one has a value, or an expression over `claims` is true.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ClaimRule {
    /// The claim's name.
    pub claim: String,
    /// Its value.
    pub required_value: String,
    /// The expression, in CEL.
    pub expression: String,
    /// What is said when it is not true.
    pub message: String,
}

/// What the user must fulfil that claims became: an expression over `user`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct UserRule {
    /// In CEL.
    pub expression: String,
    /// What is said when it is not true.
    pub message: String,
}

/// How claims become a user.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ClaimMappings {
    /// The name.
    pub username: Mapping,
    /// The groups: a text or a list of texts.
    pub groups: Option<Mapping>,
    /// The uid. It has no prefix.
    pub uid: Option<Mapping>,
    /// Further values.
    pub extra: Vec<ExtraMapping>,
}

/// A claim and what is put before its value, or an expression over `claims`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Mapping {
    /// The claim's name.
    pub claim: String,
    /// Must be given with a claim, be it empty: it keeps the provider from naming system users unless one wants it to.
    pub prefix: Option<String>,
    /// The expression, in CEL.
    pub expression: String,
}

/// A further value of a user.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct ExtraMapping {
    /// Its key, a domain's path.
    pub key: String,
    /// A text or a list of texts, in CEL over `claims`.
    pub value_expression: String,
}

/// What is written down of requests.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct AuditSettings {
    /// A Policy of `audit.k8s.io/v1`.
    pub policy: Value,
    /// Where events go, a line each.
    pub log_path: PathBuf,
    /// Size in MiB at which a new file is begun; 100 if it is 0.
    pub max_size_mb: u64,
    /// How many old files are kept; 10 if it is 0.
    pub max_backups: usize,
}

/// Pod security: `pod-security.admission.config.k8s.io/v1` PodSecurityConfiguration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct PodSecuritySettings {
    /// For namespaces without labels: `enforce`, `enforce-version`, `audit`, `audit-version`, `warn`, `warn-version`.
    pub defaults: BTreeMap<String, String>,
    /// Who is exempt.
    pub exemptions: Exemptions,
}

/// Who is exempt from Pod security.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Exemptions {
    /// These users.
    pub usernames: Vec<String>,
    /// Pods of these runtime classes.
    pub runtime_classes: Vec<String>,
    /// These namespaces.
    pub namespaces: Vec<String>,
}

/// A resource that may only be used where a quota says how much.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct LimitedResource {
    /// API group; empty for the core group.
    pub api_group: String,
    /// `pods`
    pub resource: String,
    /// Parts of names of what is used: `requests.storage`.
    pub match_contains: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_switched_on_by_name_or_by_stage() {
        let kinds = |config: &[(&str, bool)]| {
            let runtime_config = config.iter().map(|(name, on)| ((*name).to_owned(), *on)).collect();
            let settings = Settings { runtime_config, ..Settings::default() };
            settings.optional_kinds().map(|kinds| kinds.len()).map_err(|error| error.to_string())
        };
        let beta = "admissionregistration.k8s.io/v1beta1";
        assert_eq!(kinds(&[]), Ok(0));
        assert_eq!(kinds(&[(beta, true)]), Ok(2));
        assert_eq!(kinds(&[("api/beta", true), (beta, false)]), Ok(0));
        assert!(kinds(&[("apps/v7", true)]).unwrap_err().starts_with("runtimeConfig: apps/v7"));
    }
}
