//! Images that nobody uses: removed when they are too old, or when their disk gets full.

use super::facts::Stock;
use crate::context::Context;
use crate::events::{About, Severity};
use crate::settings::NodeSettings;
use carob_image::ImageSummary;
use std::collections::{HashMap, HashSet};
use std::time::Instant;

/// When each image was seen first, and used last, by this process: as the kubelet, it begins anew at each start.
#[derive(Debug, Default)]
pub(super) struct Ages(HashMap<String, Age>);

#[derive(Debug, Clone, Copy)]
struct Age {
    found: Instant,
    used: Option<Instant>,
}

impl Age {
    fn last(&self) -> Instant {
        self.used.unwrap_or(self.found)
    }
}

/// Why images are removed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Reason {
    /// It is time to look.
    Time,
    /// The disk is so full that pods would be evicted.
    Pressure,
}

impl Ages {
    /// Notes what is there and what is used, and gives what is not, the longest unused first. Images that were imported
    /// by hand are never among them: no registry would give them back.
    fn unused(&mut self, all: &[ImageSummary], used: &HashSet<String>, now: Instant) -> Vec<(ImageSummary, Age)> {
        // An image is used under all of its names when it is under one.
        let ids: HashSet<&str> = all
            .iter()
            .filter(|image| {
                [&image.reference, &image.image_id, &image.digest].into_iter().any(|name| used.contains(name))
            })
            .map(|image| image.image_id.as_str())
            .collect();
        self.0.retain(|reference, _| all.iter().any(|image| image.reference == *reference));
        let mut unused = Vec::new();
        for image in all {
            let age = self.0.entry(image.reference.clone()).or_insert(Age { found: now, used: None });
            if ids.contains(image.image_id.as_str()) {
                age.used = Some(now);
            } else if !image.imported {
                unused.push((image.clone(), *age));
            }
        }
        unused.sort_by_key(|(_, age)| (age.last(), age.found));
        unused
    }
}

/// How much has to go, if anything: the disk is fuller than one part, and is to be no fuller than another.
fn excess(settings: &NodeSettings, stock: Stock) -> Option<u64> {
    let used = stock.capacity.saturating_sub(stock.available);
    let part = |percent: u64| (u128::from(stock.capacity) * u128::from(percent) / 100).try_into().unwrap_or(u64::MAX);
    (used > part(settings.image_gc_high)).then(|| used - part(settings.image_gc_low))
}

/// Removes what is to go. `used` are the names of the images that pods of the store's workers run.
pub(super) async fn collect(
    ctx: &Context,
    ages: &mut Ages,
    used: &HashSet<String>,
    stock: Option<Stock>,
    reason: Reason,
) {
    let settings = &ctx.settings;
    let all = match ctx.images.list().await {
        Ok(all) => all,
        Err(error) => {
            let text = format!("failed to list images: {}", error.describe());
            ctx.events.record(About::node(&ctx.node), Severity::Warning, "ImageGCFailed", text);
            return;
        }
    };
    let now = Instant::now();
    let mut unused = ages.unused(&all, used, now);
    let old = |age: &Age| {
        let most = settings.image_gc_max_age;
        !most.is_zero() && now.duration_since(age.last()) > most
    };
    let excess = match reason {
        Reason::Time => stock.and_then(|stock| excess(settings, stock)),
        Reason::Pressure => Some(u64::MAX),
    };
    let mut freed = 0;
    let young = |age: &Age| now.duration_since(age.found) < settings.image_gc_min_age;
    unused.retain(|(_, age)| old(age) || excess.is_some() && (!young(age) || matches!(reason, Reason::Pressure)));
    for (image, age) in unused {
        if !old(&age) && excess.is_none_or(|excess| freed >= excess) {
            continue;
        }
        match ctx.images.remove(&image.reference).await {
            Ok(collected) => {
                freed += collected.map_or(0, |collected| collected.bytes);
                tracing::info!(image = image.reference, "an unused image was removed");
            }
            Err(error) => tracing::warn!(image = image.reference, error = error.describe(), "an image stays"),
        }
    }
    if let (Some(wanted), Reason::Time) = (excess, reason)
        && freed < wanted
    {
        let text = format!(
            "Failed to garbage collect required amount of images. Attempted to free {wanted} bytes, but only found \
             {freed} bytes eligible to free."
        );
        ctx.events.record(About::node(&ctx.node), Severity::Warning, "FreeDiskSpaceFailed", text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn image(reference: &str, id: &str, imported: bool) -> ImageSummary {
        let (digest, size, created_at) = (String::new(), 1, 0);
        ImageSummary { reference: reference.into(), digest, image_id: id.into(), size, created_at, imported }
    }

    #[test]
    fn the_longest_unused_comes_first_and_what_is_used_or_was_imported_not_at_all() {
        let mut ages = Ages::default();
        let begin = Instant::now();
        let later = |seconds| begin + Duration::from_secs(seconds);
        let all = [image("a", "1", false), image("b", "2", false), image("hand", "3", true), image("b2", "2", false)];
        let used = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<HashSet<_>>();
        let names =
            |unused: Vec<(ImageSummary, Age)>| unused.into_iter().map(|(one, _)| one.reference).collect::<Vec<_>>();
        assert_eq!(names(ages.unused(&all, &used(&["b"]), begin)), ["a"]);
        assert_eq!(names(ages.unused(&all, &used(&["a"]), later(1))), ["b", "b2"]);
        assert_eq!(names(ages.unused(&all, &used(&[]), later(2))), ["b", "b2", "a"]);
    }

    #[test]
    fn a_full_disk_is_brought_down_to_the_lower_part() {
        let settings = NodeSettings::default();
        assert_eq!(excess(&settings, Stock { available: 15, capacity: 100 }), None);
        assert_eq!(excess(&settings, Stock { available: 10, capacity: 100 }), Some(10));
    }
}
