//! Who may do what: rbac, certificates.

use super::{ROW, part};
use crate::kind::{Kind, Scope};

pub(super) static ROWS: &[Kind] = &[
    Kind {
        group: "rbac.authorization.k8s.io",
        kind: "ClusterRoleBinding",
        plural: "clusterrolebindings",
        singular: "clusterrolebinding",
        scope: Scope::Cluster,
        schema: "io.k8s.api.rbac.v1.ClusterRoleBinding",
        ..ROW
    },
    Kind {
        group: "rbac.authorization.k8s.io",
        kind: "ClusterRole",
        plural: "clusterroles",
        singular: "clusterrole",
        scope: Scope::Cluster,
        schema: "io.k8s.api.rbac.v1.ClusterRole",
        ..ROW
    },
    Kind {
        group: "rbac.authorization.k8s.io",
        kind: "RoleBinding",
        plural: "rolebindings",
        singular: "rolebinding",
        schema: "io.k8s.api.rbac.v1.RoleBinding",
        ..ROW
    },
    Kind {
        group: "rbac.authorization.k8s.io",
        kind: "Role",
        plural: "roles",
        singular: "role",
        schema: "io.k8s.api.rbac.v1.Role",
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
        schema: "io.k8s.api.certificates.v1.CertificateSigningRequest",
        ..ROW
    },
];
