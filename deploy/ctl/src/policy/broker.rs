//! What a key broker compares with: a policy that appraises evidence, one that releases resources, and reference values for the first.
//!
//! For Trustee as it is: claims lie under the evidence's kind, registers of a TPM under `tpm` or, for a bare TPM, beside the others; SNP's
//! measurement is claimed in base64; `init_data` is what the register holds.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::initdata::Document;

/// Kinds of evidence, by their names on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Tee {
    /// A TPM and nothing else: who makes the TPM is trusted.
    Tpm,
    /// AMD SEV-SNP.
    Snp,
    /// Intel TDX.
    Tdx,
    /// SEV-SNP with Azure's TPM.
    AzSnpVtpm,
    /// TDX with Azure's TPM.
    AzTdxVtpm,
    /// Written by whoever likes to. For tests.
    Sample,
}

/// Claim to its allowed values.
pub(crate) type Measurements = BTreeMap<String, BTreeSet<String>>;

/// What is pinned.
#[derive(Debug)]
pub(crate) struct Pins {
    /// Of the VM's image.
    pub(crate) measurements: Measurements,
    /// What the pod brings.
    pub(crate) initdata: Document,
    /// Resources as `repository/type/tag`.
    pub(crate) resources: BTreeSet<String>,
    /// The kind of evidence.
    pub(crate) tee: Tee,
    /// Whether measurements of firmware may be missing.
    pub(crate) any_firmware: bool,
}

/// Why there are no policies.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BrokerError {
    /// Not claims and lists of values.
    #[error("the measurements are not JSON like {{\"pcr04\":[\"<hex>\"]}}: {0}")]
    Malformed(String),
    /// A claim that such evidence does not have.
    #[error("{tee} evidence has no claim {claim:?}; next: leave it out; known: {known}")]
    Claim {
        /// The kind.
        tee: &'static str,
        /// What was given.
        claim: String,
        /// What could be.
        known: &'static str,
    },
    /// A claim without which the others say nothing.
    #[error("{tee} evidence needs {claim} among the measurements: {why}; next: add it{escape}")]
    Missing {
        /// The kind.
        tee: &'static str,
        /// What is not there.
        claim: &'static str,
        /// What would be open without it.
        why: &'static str,
        /// What else could be done.
        escape: &'static str,
    },
    /// The register does not hold such a digest.
    #[error("a TPM's register holds SHA-256 only, and the initdata names another algorithm; next: make it with --algorithm sha256")]
    Algorithm,
    /// A resource's name.
    #[error("{0:?} is not REPOSITORY/TYPE/TAG, such as default/key/1")]
    Resource(String),
    /// Nothing would be released.
    #[error("no resource to release; next: name it with --resource default/key/1")]
    NoResource,
}

impl Tee {
    /// As in protocols and claims.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Tpm => "tpm",
            Self::Snp => "snp",
            Self::Tdx => "tdx",
            Self::AzSnpVtpm => "az-snp-vtpm",
            Self::AzTdxVtpm => "az-tdx-vtpm",
            Self::Sample => "sample",
        }
    }

    fn has_registers(self) -> bool {
        matches!(self, Self::Tpm | Self::AzSnpVtpm | Self::AzTdxVtpm)
    }

    fn is_tdx(self) -> bool {
        matches!(self, Self::Tdx | Self::AzTdxVtpm)
    }

    /// Where a claim lies below the evidence's kind; more than one place where Trustee's releases differ.
    fn paths(self, claim: &str) -> Option<Vec<Vec<String>>> {
        let path = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>();
        let is_register =
            matches!(claim.strip_prefix("pcr"), Some(number) if number.len() == 2 && number.parse::<u8>().is_ok_and(|n| n < 24));
        match claim {
            _ if self == Self::Sample => Some(vec![path(&[claim])]),
            _ if is_register && self == Self::Tpm => Some(vec![path(&[claim]), path(&["tpm", claim])]),
            _ if is_register && self.has_registers() => Some(vec![path(&["tpm", claim])]),
            "ak_public" if self == Self::Tpm => Some(vec![path(&[claim])]),
            "measurement" if matches!(self, Self::Snp | Self::AzSnpVtpm) => Some(vec![path(&[claim])]),
            "mr_td" | "mr_seam" | "rtmr_0" | "rtmr_1" | "rtmr_2" | "rtmr_3" if self.is_tdx() => Some(vec![path(&["quote", "body", claim])]),
            _ => None,
        }
    }

    fn known(self) -> &'static str {
        match self {
            Self::Tpm => "pcr00 to pcr23, ak_public",
            Self::Snp => "measurement",
            Self::Tdx => "mr_td, mr_seam, rtmr_0 to rtmr_3",
            Self::AzSnpVtpm => "pcr00 to pcr23, measurement",
            Self::AzTdxVtpm => "pcr00 to pcr23, mr_td, mr_seam",
            Self::Sample => "any",
        }
    }

    /// Reference values are common to all policies of a broker, so their names say whose they are.
    fn reference(self, claim: &str) -> String {
        format!("{}_{claim}", self.name().replace('-', "_"))
    }
}

/// Reads measurements: an object of lists, or of single values.
pub(crate) fn measurements(json: &str) -> Result<Measurements, BrokerError> {
    let malformed = |reason: &str| BrokerError::Malformed(reason.to_owned());
    let value: Value = serde_json::from_str(json).map_err(|error| malformed(&error.to_string()))?;
    let object = value.as_object().ok_or_else(|| malformed("no object"))?;
    let mut all = Measurements::new();
    for (claim, values) in object {
        let is_claim = !claim.is_empty() && claim.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        let values: Vec<&str> = match values {
            Value::String(value) => vec![value],
            Value::Array(values) => values.iter().map(|value| value.as_str().unwrap_or_default()).collect(),
            _ => Vec::new(),
        };
        if !is_claim || values.is_empty() || values.iter().any(|value| value.is_empty()) {
            return Err(malformed(&format!("{claim:?} is not a claim with a list of values")));
        }
        all.insert(claim.clone(), values.into_iter().map(str::to_owned).collect());
    }
    Ok(all)
}

impl Pins {
    /// Checks that what is pinned means something.
    pub(crate) fn check(&self) -> Result<(), BrokerError> {
        let tee = self.tee.name();
        let malformed = |claim: &str, value: &str| BrokerError::Malformed(format!("{claim}: {value:?} is not lower-case hexadecimal"));
        for (claim, values) in &self.measurements {
            let known = self.tee.known();
            self.tee.paths(claim).ok_or_else(|| BrokerError::Claim { tee, claim: claim.clone(), known })?;
            // Keys are base64, and sample evidence may say anything.
            let is_hex = |value: &str| value.len().is_multiple_of(2) && value.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            if claim != "ak_public" && self.tee != Tee::Sample {
                values.iter().find(|value| !is_hex(value)).map_or(Ok(()), |value| Err(malformed(claim, value)))?;
            }
        }
        let has = |prefix: &str| self.measurements.keys().any(|claim| claim.starts_with(prefix));
        let missing = |claim, why, escape| Err(BrokerError::Missing { tee, claim, why, escape });
        let escape = ", or accept any with --any-firmware";
        let any = "without it nothing of the image is pinned";
        if self.tee.has_registers() && !has("pcr") {
            return missing("registers such as pcr04, pcr09 and pcr11", any, "");
        }
        match self.tee {
            Tee::Sample if self.measurements.is_empty() => missing("a claim such as svn", any, ""),
            Tee::Snp if !has("measurement") => missing("measurement", any, ""),
            Tee::Tdx if !has("rtmr_") => missing("registers such as rtmr_1 and rtmr_2", any, ""),
            Tee::AzSnpVtpm if !has("measurement") && !self.any_firmware => {
                missing("measurement", "the TPM is the firmware's, and any other firmware could quote any register", escape)
            }
            Tee::Tdx | Tee::AzTdxVtpm if !has("mr_td") && !self.any_firmware => {
                missing("mr_td", "any other firmware could extend any register", escape)
            }
            _ if self.tee.has_registers() && self.initdata.registers().pcr08.is_none() => Err(BrokerError::Algorithm),
            _ if self.resources.is_empty() => Err(BrokerError::NoResource),
            _ => Ok(()),
        }
    }

    /// What only makes the evidence weaker than it looks.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        match self.tee {
            Tee::Sample => warnings.push("sample evidence is written by whoever likes to: what this policy releases is public".to_owned()),
            Tee::Tpm if !self.measurements.contains_key("ak_public") => {
                warnings.push("no ak_public is pinned: any TPM is believed, one in software too; add it to the measurements".to_owned());
            }
            _ => {}
        }
        if self.any_firmware {
            warnings.push("firmware is not pinned (--any-firmware): who starts the VM can start one that lies about the rest".to_owned());
        }
        warnings
    }

    /// Reference values by name.
    pub(crate) fn reference_values(&self) -> Value {
        let values = self.measurements.iter().map(|(claim, values)| (self.tee.reference(claim), json!(self.forms(claim, values))));
        Value::Object(values.collect())
    }

    /// `data.policy.trust_claims`: affirming if and only if all reference values are met.
    pub(crate) fn attestation_policy(&self) -> String {
        let name = self.tee.name();
        let mut rego = format!(
            "# Appraises {name} evidence: affirming if the image's measurements are among the reference values, and the hardware hides the VM.\n\
             # The numbers are AR4SI's: 2 to 31 affirm, 32 to 95 warn, from 96 on contradict.\n\
             package policy\n\nimport rego.v1\n\n\
             default hardware := 97\n\ndefault executables := 33\n\ndefault configuration := 36\n\n\
             trust_claims := {{\n\t\"configuration\": configuration,\n\t\"executables\": executables,\n\t\"hardware\": hardware,\n}}\n\n\
             evidence := input[\"{name}\"]\n\n"
        );
        rego += "# What the image is.\nexecutables := 3 if {\n";
        for (index, claim) in self.measurements.keys().filter(|claim| *claim != "ak_public").enumerate() {
            let _ = writeln!(rego, "\tmeasured_{index} in query_reference_value(\"{}\")", self.tee.reference(claim));
        }
        rego += "}\n\n";
        for (index, claim) in self.measurements.keys().filter(|claim| *claim != "ak_public").enumerate() {
            let mut paths = self.tee.paths(claim).unwrap_or_default().into_iter();
            let rule = |path: Vec<String>| format!("measured_{index} := evidence.{}", path.join("."));
            match (paths.next(), paths.next()) {
                (Some(flat), Some(nested)) => {
                    let _ = writeln!(rego, "{} if not evidence.tpm\n\n{}\n", rule(flat), rule(nested));
                }
                (Some(path), None) => {
                    let _ = writeln!(rego, "{}\n", rule(path));
                }
                (None, _) => {}
            }
        }
        rego += self.hardware();
        rego += "\n# That debuggers stay outside, and that initdata is bound.\nconfiguration := 2 if {\n\tinput.init_data\n";
        rego += match self.tee {
            Tee::Snp | Tee::AzSnpVtpm => {
                "\tis_false(evidence.policy_debug_allowed)\n\tis_false(evidence.policy_migrate_ma)\n}\n\n\
                 is_false(value) if value == false\n\nis_false(value) if value == \"false\"\n"
            }
            Tee::Tdx | Tee::AzTdxVtpm => "\tevidence.td_attributes.debug == false\n}\n",
            Tee::Tpm | Tee::Sample => "\tevidence\n}\n",
        };
        rego
    }

    /// `data.policy.allow`: these resources, for this image with this initdata.
    pub(crate) fn resource_policy(&self) -> String {
        let mut claims = Vec::new();
        for (claim, values) in &self.measurements {
            let paths = self.tee.paths(claim).unwrap_or_default();
            let paths: Vec<Vec<String>> = paths.into_iter().map(|path| [vec![self.tee.name().to_owned()], path].concat()).collect();
            claims.push(json!({"claim": claim, "paths": paths, "values": self.forms(claim, values)}));
        }
        let grant = json!({"claims": claims, "init_data": self.init_data(), "resources": self.resources});
        let grants = json!([grant]);
        format!(
            "# Releases resources to one image with one initdata. Everything else is denied.\n\
             # For more workloads join their lists of grants; the rules are the same for all.\n\
             package policy\n\nimport rego.v1\n\ndefault allow := false\n\n\
             allow if {{\n\tdata.plugin == \"resource\"\n\tinput.submods.cpu0[\"ear.status\"] == \"affirming\"\n\tsome grant in grants\n\
             \tpath in grant.resources\n\tevidence.init_data in grant.init_data\n\tevery claim in grant.claims {{\n\t\tholds(claim)\n\t}}\n}}\n\n\
             evidence := input.submods.cpu0[\"ear.veraison.annotated-evidence\"]\n\n\
             holds(claim) if {{\n\tsome place in claim.paths\n\tobject.get(evidence, place, null) in claim.values\n}}\n\n\
             path := concat(\"/\", data[\"resource-path\"]) if is_array(data[\"resource-path\"])\n\n\
             path := data[\"resource-path\"] if is_string(data[\"resource-path\"])\n\n\
             grants := {grants:#}\n"
        )
    }

    fn hardware(&self) -> &'static str {
        match self.tee {
            Tee::Sample => "# No hardware at all: for tests.\nhardware := 2 if evidence\n",
            Tee::Tpm if self.measurements.contains_key("ak_public") => {
                "# One of the TPMs that are trusted by their attestation key.\n\
                 hardware := 2 if evidence.ak_public in query_reference_value(\"tpm_ak_public\")\n"
            }
            Tee::Tpm => "# INSECURE: any TPM is believed. Pin ak_public to trust those of your cloud only.\nhardware := 2 if evidence\n",
            Tee::Snp | Tee::AzSnpVtpm => {
                "# The verifier has followed the report's signature to AMD.\nhardware := 2 if evidence.measurement\n"
            }
            Tee::Tdx | Tee::AzTdxVtpm => {
                "# The verifier has followed the quote's signature to Intel.\nhardware := 2 if {\n\
                 \tevidence.quote.header.tee_type == \"81000000\"\n\tevidence.quote.header.vendor_id == \"939a7233f79c4ca9940a0db3957f0607\"\n}\n"
            }
        }
    }

    /// A value in the forms that verifiers claim it in.
    fn forms(&self, claim: &str, values: &BTreeSet<String>) -> BTreeSet<String> {
        let mut forms = values.clone();
        if claim == "measurement" && self.tee != Tee::Sample {
            forms.extend(values.iter().filter_map(|value| hex::decode(value).ok()).map(|bytes| STANDARD.encode(bytes)));
        }
        forms
    }

    /// What the evidence's `init_data` may be.
    fn init_data(&self) -> BTreeSet<String> {
        let registers = self.initdata.registers();
        match self.tee {
            Tee::Sample => BTreeSet::from([hex::encode(self.initdata.digest())]),
            Tee::Snp => BTreeSet::from([hex::encode(registers.host_data)]),
            Tee::Tdx => BTreeSet::from([hex::encode(registers.mrconfigid)]),
            Tee::Tpm | Tee::AzSnpVtpm | Tee::AzTdxVtpm => registers.pcr08.map(hex::encode).into_iter().collect(),
        }
    }
}

/// `default/key/1` of a resource, with or without `kbs:///`.
pub(crate) fn resource(text: &str) -> Result<String, BrokerError> {
    let path = text.strip_prefix("kbs:///").unwrap_or(text);
    let refused = |_| BrokerError::Resource(text.to_owned());
    Ok(crate::key_file::KeyId::parse(&format!("kbs:///{path}")).map_err(refused)?.resource_path().to_owned())
}
