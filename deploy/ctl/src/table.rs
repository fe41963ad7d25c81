//! Tables for people.

use peerpods_controller_api::report::StateReport;

/// Pod VMs.
pub(crate) fn pod_vms(state: &StateReport) -> String {
    let rows = state.pod_vms.iter().map(|pod_vm| {
        let claim = pod_vm.claim.as_ref();
        // A pod's name says more than its claim's key.
        let pod = claim.and_then(|key| state.claims.iter().find(|claim| claim.key == *key)).map(|claim| claim.pod.to_string());
        [
            pod_vm.instance_id.to_string(),
            pod_vm.class.to_string(),
            pod_vm.instance_type.clone(),
            pod_vm.zone.as_ref().map_or_else(none, ToString::to_string),
            pod_vm.state.clone(),
            pod_vm.address.map_or_else(none, |address| address.to_string()),
            pod.or_else(|| claim.map(ToString::to_string)).unwrap_or_else(none),
            pod_vm.detail.clone().unwrap_or_default(),
        ]
    });
    table(["ID", "CLASS", "TYPE", "ZONE", "STATE", "ADDRESS", "POD", ""], rows)
}

/// Classes.
pub(crate) fn classes(state: &StateReport) -> String {
    let rows = state.classes.iter().map(|record| {
        let class = &record.class;
        let zones: Vec<String> = class.places().into_iter().flatten().map(|zone| zone.to_string()).collect();
        let waiting = state.pod_vms.iter().filter(|pod_vm| pod_vm.class == record.name && pod_vm.claim.is_none());
        [
            record.name.to_string(),
            class.tee.as_str().to_owned(),
            if class.instance_types.is_empty() { "any".to_owned() } else { class.instance_types.join(",") },
            if zones.is_empty() { "any".to_owned() } else { zones.join(",") },
            class.pool.map_or_else(none, |pool| format!("{} of {} to {}", waiting.count(), pool.min, pool.max)),
        ]
    });
    table(["NAME", "TEE", "TYPES", "ZONES", "WAITING"], rows)
}

/// Claims.
pub(crate) fn claims(state: &StateReport) -> String {
    let rows = state.claims.iter().map(|claim| {
        [
            claim.pod.to_string(),
            claim.node.to_string(),
            claim.class.to_string(),
            claim.status.clone(),
            claim.instance_id.as_ref().map_or_else(none, ToString::to_string),
            claim.detail.clone().unwrap_or_default(),
        ]
    });
    table(["POD", "NODE", "CLASS", "STATUS", "POD VM", ""], rows)
}

fn none() -> String {
    "-".to_owned()
}

/// Without control characters: clouds and guests have a say in some texts, and a terminal obeys them.
pub(crate) fn clean(text: &str) -> String {
    text.replace(char::is_control, " ")
}

/// Columns as wide as their widest cell; the last one is not padded.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: impl Iterator<Item = [String; N]>) -> String {
    let rows = rows.map(|row| row.map(|cell| clean(&cell)));
    let rows: Vec<[String; N]> = std::iter::once(head.map(str::to_owned)).chain(rows).collect();
    let widths: Vec<usize> = (0..N).map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default()).collect();
    let line = |row: &[String; N]| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["a".to_owned(), "bb\u{1b}[2J".to_owned()], ["ccc".to_owned(), String::new()]];
        assert_eq!(table(["X", "LONG"], rows.into_iter()), "X    LONG\na    bb [2J\nccc\n");
    }
}
