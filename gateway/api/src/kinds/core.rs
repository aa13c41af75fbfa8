//! The core group: `v1`.

use super::{CONNECT, CREATE, PROXY_VERBS, READ_VERBS, ROW, SCALE, part, with_verbs};
use crate::kind::{Kind, Scope};
use crate::{strategy, table};

pub(super) static ROWS: &[Kind] = &[
    Kind {
        kind: "Binding",
        plural: "bindings",
        singular: "binding",
        verbs: CREATE,
        schema: "io.k8s.api.core.v1.Binding",
        ..ROW
    },
    Kind {
        kind: "ComponentStatus",
        plural: "componentstatuses",
        singular: "componentstatus",
        short_names: &["cs"],
        scope: Scope::Cluster,
        verbs: READ_VERBS,
        columns: table::component_status::COLUMNS,
        schema: "io.k8s.api.core.v1.ComponentStatus",
        ..ROW
    },
    Kind {
        kind: "ConfigMap",
        plural: "configmaps",
        singular: "configmap",
        short_names: &["cm"],
        columns: table::config_map::COLUMNS,
        schema: "io.k8s.api.core.v1.ConfigMap",
        strategy: strategy::config_map::STRATEGY,
        ..ROW
    },
    Kind {
        kind: "Endpoints",
        plural: "endpoints",
        singular: "endpoints",
        short_names: &["ep"],
        columns: table::endpoints::COLUMNS,
        schema: "io.k8s.api.core.v1.Endpoints",
        strategy: strategy::endpoints::STRATEGY,
        ..ROW
    },
    Kind {
        kind: "Event",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        columns: table::event::COLUMNS,
        schema: "io.k8s.api.core.v1.Event",
        strategy: strategy::event::STRATEGY,
        ..ROW
    },
    Kind {
        kind: "LimitRange",
        plural: "limitranges",
        singular: "limitrange",
        short_names: &["limits"],
        schema: "io.k8s.api.core.v1.LimitRange",
        strategy: strategy::limit_range::STRATEGY,
        ..ROW
    },
    Kind {
        kind: "Namespace",
        plural: "namespaces",
        singular: "namespace",
        short_names: &["ns"],
        scope: Scope::Cluster,
        verbs: &["create", "delete", "get", "list", "patch", "update", "watch"],
        subresources: &[
            with_verbs("finalize", ("", "v1", "Namespace"), &["update"]),
            part("status", ("", "v1", "Namespace")),
        ],
        columns: table::namespace::COLUMNS,
        schema: "io.k8s.api.core.v1.Namespace",
        strategy: strategy::namespace::STRATEGY,
        ..ROW
    },
    Kind {
        kind: "Node",
        plural: "nodes",
        singular: "node",
        short_names: &["no"],
        scope: Scope::Cluster,
        subresources: &[
            with_verbs("proxy", ("", "v1", "NodeProxyOptions"), PROXY_VERBS),
            part("status", ("", "v1", "Node")),
        ],
        columns: table::node::COLUMNS,
        schema: "io.k8s.api.core.v1.Node",
        strategy: strategy::node::STRATEGY,
        ..ROW
    },
    Kind {
        kind: "PersistentVolumeClaim",
        plural: "persistentvolumeclaims",
        singular: "persistentvolumeclaim",
        short_names: &["pvc"],
        subresources: &[part("status", ("", "v1", "PersistentVolumeClaim"))],
        columns: table::persistent_volume_claim::COLUMNS,
        schema: "io.k8s.api.core.v1.PersistentVolumeClaim",
        strategy: strategy::persistent_volume_claim::STRATEGY,
        ..ROW
    },
    Kind {
        kind: "PersistentVolume",
        plural: "persistentvolumes",
        singular: "persistentvolume",
        short_names: &["pv"],
        scope: Scope::Cluster,
        subresources: &[part("status", ("", "v1", "PersistentVolume"))],
        columns: table::persistent_volume::COLUMNS,
        schema: "io.k8s.api.core.v1.PersistentVolume",
        strategy: strategy::persistent_volume::STRATEGY,
        ..ROW
    },
    Kind {
        kind: "Pod",
        plural: "pods",
        singular: "pod",
        short_names: &["po"],
        categories: &["all"],
        subresources: &[
            with_verbs("attach", ("", "v1", "PodAttachOptions"), CONNECT),
            with_verbs("binding", ("", "v1", "Binding"), CREATE),
            part("ephemeralcontainers", ("", "v1", "Pod")),
            with_verbs("eviction", ("policy", "v1", "Eviction"), CREATE),
            with_verbs("exec", ("", "v1", "PodExecOptions"), CONNECT),
            with_verbs("log", ("", "v1", "Pod"), &["get"]),
            with_verbs("portforward", ("", "v1", "PodPortForwardOptions"), CONNECT),
            with_verbs("proxy", ("", "v1", "PodProxyOptions"), PROXY_VERBS),
            part("resize", ("", "v1", "Pod")),
            part("status", ("", "v1", "Pod")),
        ],
        columns: table::pod::COLUMNS,
        schema: "io.k8s.api.core.v1.Pod",
        strategy: strategy::pod::STRATEGY,
        ..ROW
    },
    Kind {
        kind: "PodTemplate",
        plural: "podtemplates",
        singular: "podtemplate",
        columns: table::pod_template::COLUMNS,
        schema: "io.k8s.api.core.v1.PodTemplate",
        strategy: strategy::pod_template::STRATEGY,
        ..ROW
    },
    Kind {
        kind: "ReplicationController",
        plural: "replicationcontrollers",
        singular: "replicationcontroller",
        short_names: &["rc"],
        categories: &["all"],
        subresources: &[SCALE, part("status", ("", "v1", "ReplicationController"))],
        columns: table::replication_controller::COLUMNS,
        schema: "io.k8s.api.core.v1.ReplicationController",
        strategy: strategy::replication_controller::STRATEGY,
        ..ROW
    },
    Kind {
        kind: "ResourceQuota",
        plural: "resourcequotas",
        singular: "resourcequota",
        short_names: &["quota"],
        subresources: &[part("status", ("", "v1", "ResourceQuota"))],
        columns: table::resource_quota::COLUMNS,
        schema: "io.k8s.api.core.v1.ResourceQuota",
        strategy: strategy::resource_quota::STRATEGY,
        ..ROW
    },
    Kind {
        kind: "Secret",
        plural: "secrets",
        singular: "secret",
        columns: table::secret::COLUMNS,
        schema: "io.k8s.api.core.v1.Secret",
        strategy: strategy::secret::STRATEGY,
        ..ROW
    },
    Kind {
        kind: "ServiceAccount",
        plural: "serviceaccounts",
        singular: "serviceaccount",
        short_names: &["sa"],
        subresources: &[with_verbs("token", ("authentication.k8s.io", "v1", "TokenRequest"), CREATE)],
        columns: table::service_account::COLUMNS,
        schema: "io.k8s.api.core.v1.ServiceAccount",
        strategy: strategy::service_account::STRATEGY,
        ..ROW
    },
    Kind {
        kind: "Service",
        plural: "services",
        singular: "service",
        short_names: &["svc"],
        categories: &["all"],
        subresources: &[
            with_verbs("proxy", ("", "v1", "ServiceProxyOptions"), PROXY_VERBS),
            part("status", ("", "v1", "Service")),
        ],
        columns: table::service::COLUMNS,
        schema: "io.k8s.api.core.v1.Service",
        strategy: strategy::service::STRATEGY,
        ..ROW
    },
];
