//! Who may do what: rbac, certificates, and the reviews that answer questions about it.

use super::{CREATE, ROW, part};
use crate::kind::{Kind, Scope};
use crate::{strategy, table};

pub(super) static ROWS: &[Kind] = &[
    Kind {
        group: "rbac.authorization.k8s.io",
        kind: "ClusterRoleBinding",
        plural: "clusterrolebindings",
        singular: "clusterrolebinding",
        scope: Scope::Cluster,
        columns: table::rbac::BINDING,
        schema: "io.k8s.api.rbac.v1.ClusterRoleBinding",
        strategy: strategy::rbac::CLUSTER_ROLE_BINDING,
        ..ROW
    },
    Kind {
        group: "rbac.authorization.k8s.io",
        kind: "ClusterRole",
        plural: "clusterroles",
        singular: "clusterrole",
        scope: Scope::Cluster,
        schema: "io.k8s.api.rbac.v1.ClusterRole",
        strategy: strategy::rbac::CLUSTER_ROLE,
        ..ROW
    },
    Kind {
        group: "rbac.authorization.k8s.io",
        kind: "RoleBinding",
        plural: "rolebindings",
        singular: "rolebinding",
        columns: table::rbac::BINDING,
        schema: "io.k8s.api.rbac.v1.RoleBinding",
        strategy: strategy::rbac::ROLE_BINDING,
        ..ROW
    },
    Kind {
        group: "rbac.authorization.k8s.io",
        kind: "Role",
        plural: "roles",
        singular: "role",
        schema: "io.k8s.api.rbac.v1.Role",
        strategy: strategy::rbac::ROLE,
        ..ROW
    },
    Kind {
        group: "certificates.k8s.io",
        kind: "CertificateSigningRequest",
        plural: "certificatesigningrequests",
        singular: "certificatesigningrequest",
        short_names: &["csr"],
        scope: Scope::Cluster,
        subresources: &[
            part("approval", ("certificates.k8s.io", "v1", "CertificateSigningRequest")),
            part("status", ("certificates.k8s.io", "v1", "CertificateSigningRequest")),
        ],
        columns: table::certificate::COLUMNS,
        schema: "io.k8s.api.certificates.v1.CertificateSigningRequest",
        strategy: strategy::certificate_signing_request::STRATEGY,
        ..ROW
    },
    // Reviews are answered, never stored.
    Kind {
        group: "authentication.k8s.io",
        kind: "SelfSubjectReview",
        plural: "selfsubjectreviews",
        singular: "selfsubjectreview",
        scope: Scope::Cluster,
        verbs: CREATE,
        schema: "io.k8s.api.authentication.v1.SelfSubjectReview",
        ..ROW
    },
    Kind {
        group: "authentication.k8s.io",
        kind: "TokenReview",
        plural: "tokenreviews",
        singular: "tokenreview",
        scope: Scope::Cluster,
        verbs: CREATE,
        schema: "io.k8s.api.authentication.v1.TokenReview",
        ..ROW
    },
    Kind {
        group: "authorization.k8s.io",
        kind: "LocalSubjectAccessReview",
        plural: "localsubjectaccessreviews",
        singular: "localsubjectaccessreview",
        verbs: CREATE,
        schema: "io.k8s.api.authorization.v1.LocalSubjectAccessReview",
        ..ROW
    },
    Kind {
        group: "authorization.k8s.io",
        kind: "SelfSubjectAccessReview",
        plural: "selfsubjectaccessreviews",
        singular: "selfsubjectaccessreview",
        scope: Scope::Cluster,
        verbs: CREATE,
        schema: "io.k8s.api.authorization.v1.SelfSubjectAccessReview",
        ..ROW
    },
    Kind {
        group: "authorization.k8s.io",
        kind: "SelfSubjectRulesReview",
        plural: "selfsubjectrulesreviews",
        singular: "selfsubjectrulesreview",
        scope: Scope::Cluster,
        verbs: CREATE,
        schema: "io.k8s.api.authorization.v1.SelfSubjectRulesReview",
        ..ROW
    },
    Kind {
        group: "authorization.k8s.io",
        kind: "SubjectAccessReview",
        plural: "subjectaccessreviews",
        singular: "subjectaccessreview",
        scope: Scope::Cluster,
        verbs: CREATE,
        schema: "io.k8s.api.authorization.v1.SubjectAccessReview",
        ..ROW
    },
];
