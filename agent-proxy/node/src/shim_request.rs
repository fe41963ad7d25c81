//! What our own shim asks for: the sandbox's annotations as containerd gives them.
//!
//! Kata's keys mean what they mean to Kata's shims, but come as the pod has them: initdata is base64 of gzip. Where a pod names no size,
//! its size is the sum of its containers' limits, which containerd writes into the sandbox's annotations, and what the guest itself needs.

use std::collections::HashMap;
use std::io::Read as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use peerpods_controller_api::PodRef;

use crate::request::{self, AnnotationError, INITDATA, INITDATA_LIMIT, MEMORY, NAME, NAMESPACE, PodRequest, VCPUS, refuse};

/// containerd's annotations of a sandbox (containerd `internal/cri/annotations`).
const CPU_QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const CPU_PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
const MEMORY_LIMIT: &str = "io.kubernetes.cri.sandbox-memory";

/// What a pod VM needs beside its containers: kernel, agent, and what firmware and the kernel's own tables keep. The guest alone takes
/// about 80 MiB of a machine of 256 MiB.
const GUEST_OVERHEAD_MIB: u64 = 128;

const BASE64_LIMIT: usize = 512 << 10;

/// Reads the annotations of a sandbox of that pod.
pub(crate) fn parse(annotations: &HashMap<String, String>, pod: &PodRef) -> Result<PodRequest, AnnotationError> {
    let mut known = annotations.clone();
    known.insert(NAME.to_owned(), pod.name().to_owned());
    known.insert(NAMESPACE.to_owned(), pod.namespace().to_owned());
    if let Some(text) = known.get(INITDATA).filter(|text| !text.trim().is_empty()) {
        let plain = decode(text)?;
        known.insert(INITDATA.to_owned(), plain);
    }
    let number = |key: &'static str| -> Result<u64, AnnotationError> {
        let Some(text) = annotations.get(key) else { return Ok(0) };
        // A negative quota means that there is none.
        text.parse::<i64>().map(|number| u64::try_from(number).unwrap_or(0)).map_err(|_| refuse(key, text, "must be a whole number"))
    };
    let (quota, period, memory) = (number(CPU_QUOTA)?, number(CPU_PERIOD)?, number(MEMORY_LIMIT)?);
    if quota > 0 && period > 0 {
        let thousandths = quota.saturating_mul(1000).div_ceil(period);
        known.entry(VCPUS.to_owned()).or_insert_with(|| format!("{}.{:03}", thousandths / 1000, thousandths % 1000));
    }
    if memory > 0 {
        known.entry(MEMORY.to_owned()).or_insert_with(|| memory.div_ceil(1 << 20).saturating_add(GUEST_OVERHEAD_MIB).to_string());
    }
    request::parse(&known).map(|(_, wish)| wish)
}

/// Base64 of gzip of TOML, each step within a limit.
fn decode(text: &str) -> Result<String, AnnotationError> {
    let bad = |expected: &str| refuse(INITDATA, text, expected);
    if text.len() > BASE64_LIMIT {
        return Err(bad("is longer than 512 KiB"));
    }
    let packed = STANDARD.decode(text.trim()).map_err(|_| bad("must be base64 of gzip of TOML"))?;
    let mut plain = String::new();
    let limit = u64::try_from(INITDATA_LIMIT).unwrap_or(u64::MAX) + 1;
    flate2::read::GzDecoder::new(&packed[..]).take(limit).read_to_string(&mut plain).map_err(|_| bad("must be base64 of gzip of TOML"))?;
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use peerpods_controller_api::Mib;

    use super::*;

    fn pod() -> PodRef {
        PodRef::new("default", "web", Some("0f1e2d3c-0000-4000-8000-000000000001".to_owned())).unwrap()
    }

    fn of(pairs: &[(&str, &str)]) -> HashMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn packed(text: &str) -> String {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        gzip.write_all(text.as_bytes()).unwrap();
        STANDARD.encode(gzip.finish().unwrap())
    }

    #[test]
    fn limits_of_the_containers_are_the_size_unless_the_pod_names_one() {
        let limits = [(CPU_QUOTA, "150000"), (CPU_PERIOD, "100000"), (MEMORY_LIMIT, "268435457")];
        let wish = parse(&of(&limits), &pod()).unwrap();
        assert!((wish.vcpus - 1.5).abs() < f32::EPSILON);
        assert_eq!(wish.memory_mib, Mib(257 + 128));
        let named = [&limits[..], &[(VCPUS, "4"), (MEMORY, "512")]].concat();
        let wish = parse(&of(&named), &pod()).unwrap();
        assert!((wish.vcpus - 4.0).abs() < f32::EPSILON);
        assert_eq!(wish.memory_mib, Mib(512));
        assert!((parse(&of(&[(CPU_QUOTA, "-1"), (CPU_PERIOD, "100000")]), &pod()).unwrap().vcpus).abs() < f32::EPSILON);
        assert!(parse(&of(&[(CPU_QUOTA, "much")]), &pod()).unwrap_err().to_string().contains(CPU_QUOTA));
    }

    #[test]
    fn initdata_is_unpacked_within_limits() {
        let text = "algorithm = \"sha384\"\nversion = \"0.1.0\"\n\n[data]\n";
        let wish = parse(&of(&[(INITDATA, &packed(text))]), &pod()).unwrap();
        assert_eq!(wish.initdata.as_deref(), Some(text));
        for bad in ["%%%".to_owned(), STANDARD.encode("no gzip"), packed(&"#".repeat(INITDATA_LIMIT + 1)), "A".repeat(BASE64_LIMIT + 4)] {
            let error = parse(&of(&[(INITDATA, &bad)]), &pod()).unwrap_err();
            assert!(error.to_string().contains(INITDATA), "{error}");
        }
    }
}
