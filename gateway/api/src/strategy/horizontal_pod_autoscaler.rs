//! `HorizontalPodAutoscaler`, stored as `autoscaling/v2`.

mod conversion;

use crate::kind::StoredForm;

/// Autoscalers of `autoscaling/v1` are stored as those of `autoscaling/v2`.
pub const STORED: StoredForm = StoredForm {
    group: "autoscaling",
    version: "v2",
    plural: "horizontalpodautoscalers",
    to: conversion::to_v2,
    from: conversion::to_v1,
};
