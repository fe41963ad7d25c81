use peerpods_e2e::Scenario;
pub(super) fn scenarios() -> Vec<Scenario> {
    Vec::new()
}
