//! The answer to an apply that touches what others own.

use std::collections::BTreeMap;

use crate::managed_fields::element::path_text;
use crate::managed_fields::entries::ManagerId;
use crate::managed_fields::{Conflict, Operation};
use crate::status::{Cause, Status, quote};

/// 409 with a cause for each field.
pub(super) fn status(conflicts: &[Conflict]) -> Status {
    let causes = conflicts.iter().map(|(manager, path)| Cause {
        reason: "FieldManagerConflict".to_owned(),
        message: format!("conflict with {}", described(manager)),
        field: path_text(path),
    });
    Status::apply_conflict(causes.collect(), message(conflicts))
}

fn message(conflicts: &[Conflict]) -> String {
    if let [(manager, path)] = conflicts {
        return format!("Apply failed with 1 conflict: conflict with {}: {}", described(manager), path_text(path));
    }
    let mut by_manager: BTreeMap<&ManagerId, Vec<String>> = BTreeMap::new();
    for (manager, path) in conflicts {
        by_manager.entry(manager).or_default().push(path_text(path));
    }
    let mut lines = Vec::new();
    for (manager, paths) in by_manager {
        lines.push(format!("conflicts with {}:", described(manager)));
        lines.extend(paths.into_iter().map(|path| format!("- {path}")));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

fn described(manager: &ManagerId) -> String {
    let name = quote(&manager.name);
    let through = match manager.subresource.as_str() {
        "" => String::new(),
        subresource => format!(" with subresource {}", quote(subresource)),
    };
    match manager.operation {
        Operation::Apply => format!("{name}{through}"),
        Operation::Update => format!("{name}{through} using {}", manager.api_version),
    }
}
