//! The page as one file: its scripts and styles inlined, the answers of the API and the images embedded. It needs no server and loads nothing.

use super::api::image_type;
use super::groups::{self, Filter, Order};
use super::source::{ApiError, Source};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use quorum_core::vote::Outcome;
use serde_json::{Map, Value, json};
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

/// Groups of each kind that are taken in.
const NEWEST: usize = 8;
const LEAST: usize = 8;
const OF_OUTCOME: usize = 4;
/// Encoded bytes of images that are taken in.
const IMAGES: usize = 8 << 20;

/// The whole file.
///
/// # Errors
/// The ledger cannot be read.
pub async fn report_page(source: &Arc<Source>) -> Result<String, ApiError> {
    let mut overview = source.overview().await?;
    if let Some(object) = overview.as_object_mut() {
        object.insert("config_toml".into(), source.material.config_toml.clone().into());
    }
    source.read(move |source| assemble(source, overview)).await
}

fn assemble(source: &Source, overview: Value) -> Result<String, ApiError> {
    let steps = source.columns()?.json(0, &[]);
    let (list, details) = samples(source)?;
    let mut images = Map::new();
    let mut room = IMAGES;
    let hashes: BTreeSet<&str> =
        details.iter().filter_map(|(_, g)| g.get("images")?.as_array()).flatten().filter_map(Value::as_str).collect();
    for hash in hashes {
        let Some(bytes) = source.material.blob(hash) else { continue };
        let Some(kind) = image_type(&bytes).filter(|_| bytes.len() <= room) else { continue };
        room -= bytes.len();
        images.insert(hash.to_owned(), format!("data:{kind};base64,{}", STANDARD.encode(&*bytes)).into());
    }
    let mut answers = Map::new();
    answers.insert("run".into(), overview);
    answers.insert("steps".into(), steps);
    answers.insert("groups".into(), list);
    answers.extend(details);
    Ok(page(&json!({ "answers": answers, "images": images })))
}

/// The list of sample groups and each of them whole: the newest, those with least agreement, some of every outcome.
fn samples(source: &Source) -> Result<(Value, Vec<(String, Value)>), ApiError> {
    let filter =
        |order, outcome: Option<Outcome>, limit| Filter { order, outcome, limit: Some(limit), ..Filter::default() };
    let mut wanted = vec![
        filter(Order::Newest, Some(Outcome::Used), NEWEST),
        filter(Order::Agreement, None, LEAST),
        filter(Order::Change, None, NEWEST),
    ];
    wanted.extend(Outcome::ALL.map(|o| filter(Order::Newest, Some(o), OF_OUTCOME)));
    let mut seen = BTreeSet::new();
    let (mut groups, mut details) = (Vec::new(), Vec::new());
    let mut whole = json!({});
    for filter in &wanted {
        let found = groups::list(source, filter)?;
        for group in found.get("groups").and_then(Value::as_array).into_iter().flatten() {
            let number = |key: &str| group.get(key).and_then(Value::as_u64).unwrap_or(0);
            let (step, slot) = (number("step"), number("slot") as u32);
            if seen.insert((step, slot)) {
                groups.push(group.clone());
                details.push((format!("groups/{step}/{slot}"), groups::detail(source, step, slot)?));
            }
        }
        whole = found;
    }
    if let Some(object) = whole.as_object_mut() {
        object.insert("matching".into(), groups.len().into());
        object.insert("groups".into(), groups.into());
    }
    Ok((whole, details))
}

/// index.html with everything it refers to inside.
fn page(data: &Value) -> String {
    let mut html = include_str!("../../web/index.html").to_owned();
    let styles =
        [("uplot.css", include_str!("../../web/vendor/uPlot.min.css")), ("app.css", include_str!("../../web/app.css"))];
    for (name, text) in styles {
        html = html.replace(&format!("<link rel=\"stylesheet\" href=\"{name}\">"), &format!("<style>{text}</style>"));
    }
    // `<` cannot end the element early, whatever an answer holds.
    let data = data.to_string().replace('<', "\\u003c");
    let mut scripts = format!("<script>window.QUORUM_REPORT = {data};</script>\n");
    let files = [
        ("uplot.js", include_str!("../../web/vendor/uPlot.iife.min.js")),
        ("charts.js", include_str!("../../web/charts.js")),
        ("groups.js", include_str!("../../web/groups.js")),
        ("app.js", include_str!("../../web/app.js")),
    ];
    for (name, text) in files {
        html = html.replace(&format!("<script src=\"{name}\"></script>\n"), "");
        let _ = writeln!(scripts, "<script>{text}</script>");
    }
    html.replace("</body>", &format!("{scripts}</body>"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_loads_nothing_and_cannot_be_broken_out_of() {
        let html = page(&json!({ "answers": { "x": "</script><script>alert(1)</script>" }, "images": {} }));
        assert!(!html.contains("src=\"") && !html.contains("rel=\"stylesheet\""), "something is still loaded");
        assert!(!html.contains("alert(1)</script>"));
        assert_eq!(html.matches("<script").count(), html.matches("</script>").count());
        assert!(html.contains("uPlot=function") && html.contains("QUORUM_REPORT"));
    }
}
