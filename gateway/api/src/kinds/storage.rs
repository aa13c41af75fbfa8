//! Storage: classes, drivers, attachments.

use super::{ROW, part};
use crate::kind::{Kind, Scope};
use crate::{strategy, table};

pub(super) static ROWS: &[Kind] = &[
    Kind {
        group: "storage.k8s.io",
        kind: "CSIDriver",
        plural: "csidrivers",
        singular: "csidriver",
        scope: Scope::Cluster,
        columns: table::storage::DRIVER,
        schema: "io.k8s.api.storage.v1.CSIDriver",
        strategy: strategy::csi::DRIVER,
        ..ROW
    },
    Kind {
        group: "storage.k8s.io",
        kind: "CSINode",
        plural: "csinodes",
        singular: "csinode",
        scope: Scope::Cluster,
        columns: table::storage::NODE,
        schema: "io.k8s.api.storage.v1.CSINode",
        strategy: strategy::csi::NODE,
        ..ROW
    },
    Kind {
        group: "storage.k8s.io",
        kind: "CSIStorageCapacity",
        plural: "csistoragecapacities",
        singular: "csistoragecapacity",
        schema: "io.k8s.api.storage.v1.CSIStorageCapacity",
        strategy: strategy::csi::CAPACITY,
        ..ROW
    },
    Kind {
        group: "storage.k8s.io",
        kind: "StorageClass",
        plural: "storageclasses",
        singular: "storageclass",
        short_names: &["sc"],
        scope: Scope::Cluster,
        columns: table::storage::STORAGE_CLASS,
        schema: "io.k8s.api.storage.v1.StorageClass",
        strategy: strategy::storage_class::STRATEGY,
        ..ROW
    },
    Kind {
        group: "storage.k8s.io",
        kind: "VolumeAttachment",
        plural: "volumeattachments",
        singular: "volumeattachment",
        scope: Scope::Cluster,
        subresources: &[part("status", ("storage.k8s.io", "v1", "VolumeAttachment"))],
        columns: table::storage::ATTACHMENT,
        schema: "io.k8s.api.storage.v1.VolumeAttachment",
        strategy: strategy::csi::ATTACHMENT,
        ..ROW
    },
    Kind {
        group: "storage.k8s.io",
        kind: "VolumeAttributesClass",
        plural: "volumeattributesclasses",
        singular: "volumeattributesclass",
        short_names: &["vac"],
        scope: Scope::Cluster,
        columns: table::storage::ATTRIBUTES_CLASS,
        schema: "io.k8s.api.storage.v1.VolumeAttributesClass",
        strategy: strategy::storage_class::ATTRIBUTES,
        ..ROW
    },
];
