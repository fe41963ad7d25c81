//! The three files of a key broker.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::tee::{self, Subject};
use super::{Pins, TcbStatus, Tee};

impl Pins {
    /// Reference values by name.
    pub(crate) fn reference_values(&self) -> Value {
        let values = self.claims().into_iter().map(|(claim, values)| (self.tee.reference(&claim), json!(self.forms(&claim, &values))));
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
        let _ = write!(rego, "# What the image is.\nexecutables := 3 if {{\n{}}}\n\n", self.comparisons(Subject::Executables));
        for claim in self.claims().keys() {
            let mut paths = self.tee.paths(claim).unwrap_or_default().into_iter();
            let rule = |path: Vec<String>| format!("measured_{claim} := evidence.{}", path.join("."));
            let _ = match (paths.next(), paths.next()) {
                (Some(flat), Some(nested)) => write!(rego, "{} if not evidence.tpm\n\n{}\n\n", rule(flat), rule(nested)),
                (Some(path), None) => write!(rego, "{}\n\n", rule(path)),
                (None, _) => Ok(()),
            };
        }
        rego += &self.hardware();
        rego += "\n# That debuggers stay outside, and that initdata is bound.\nconfiguration := 2 if {\n";
        rego += if self.tee == Tee::Tdx { "\tevidence.quote.body.rtmr_3\n" } else { "\tinput.init_data\n" };
        rego += match self.tee {
            Tee::Snp | Tee::AzSnpVtpm | Tee::SnpTpm => {
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
        for (claim, values) in self.claims() {
            let paths = self.tee.paths(&claim).unwrap_or_default();
            let paths: Vec<Vec<String>> = paths.into_iter().map(|path| [vec![self.tee.name().to_owned()], path].concat()).collect();
            claims.push(json!({"claim": claim, "paths": paths, "values": self.forms(&claim, &values)}));
        }
        let (place, values) = self.bound();
        claims.push(json!({"claim": "initdata", "paths": [place], "values": values}));
        let grant = json!({"claims": claims, "resources": self.resources});
        let grants = json!([grant]);
        format!(
            "# Releases resources to one image with one initdata. Everything else is denied.\n\
             # For more workloads join their lists of grants; the rules are the same for all.\n\
             package policy\n\nimport rego.v1\n\ndefault allow := false\n\n\
             allow if {{\n\tdata.plugin == \"resource\"\n\tinput.submods.cpu0[\"ear.status\"] == \"affirming\"\n\tsome grant in grants\n\
             \tpath in grant.resources\n\tevery claim in grant.claims {{\n\t\tholds(claim)\n\t}}\n}}\n\n\
             evidence := input.submods.cpu0[\"ear.veraison.annotated-evidence\"]\n\n\
             holds(claim) if {{\n\tsome place in claim.paths\n\tobject.get(evidence, place, null) in claim.values\n}}\n\n\
             path := concat(\"/\", data[\"resource-path\"]) if is_array(data[\"resource-path\"])\n\n\
             path := data[\"resource-path\"] if is_string(data[\"resource-path\"])\n\n\
             grants := {grants:#}\n"
        )
    }

    /// The lines that compare what tells of this subject.
    fn comparisons(&self, subject: Subject) -> String {
        let claims = self.claims().into_keys().filter(|claim| self.tee.subject(claim) == subject);
        claims.map(|claim| format!("\tmeasured_{claim} in query_reference_value(\"{}\")\n", self.tee.reference(&claim))).collect()
    }

    fn hardware(&self) -> String {
        let (comment, condition) = match self.tee {
            Tee::Sample => ("No hardware at all: for tests.", "\tevidence\n"),
            Tee::Tpm if self.measurements.contains_key("ak_public") => ("One of the TPMs that are trusted by their attestation key.", ""),
            Tee::Tpm => ("INSECURE: any TPM is believed. Pin ak_public to trust those of your cloud only.", "\tevidence\n"),
            Tee::Snp | Tee::AzSnpVtpm => ("The verifier has followed the report's signature to AMD.", "\tevidence.measurement\n"),
            Tee::SnpTpm => {
                ("The verifier has followed the report's signature to AMD; the TPM is one of the cloud's.", "\tevidence.measurement\n")
            }
            Tee::Tdx | Tee::AzTdxVtpm => (
                "The verifier has followed the quote's signature to Intel, and has Intel's word on the platform's firmware.",
                "\tevidence.quote.header.tee_type == \"81000000\"\n\
                 \tevidence.quote.header.vendor_id == \"939a7233f79c4ca9940a0db3957f0607\"\n\tis_collateral_current\n",
            ),
        };
        let mut rego = format!("# {comment}\nhardware := 2 if {{\n{condition}{}}}\n", self.comparisons(Subject::Hardware));
        if self.tee.is_tdx() {
            rego += "\nis_collateral_current if evidence.collateral_expiration_status == \"0\"\n";
            if self.accepted_tcb.contains(&TcbStatus::Unknown) {
                rego += "\n# There is none.\nis_collateral_current if evidence.tcb_status == \"Unknown\"\n";
            }
        }
        rego
    }

    /// A value in the forms that verifiers claim it in.
    fn forms(&self, claim: &str, values: &BTreeSet<String>) -> Vec<Value> {
        let mut forms: Vec<Value> = values.iter().map(|value| json!(value)).collect();
        if claim == "measurement" && self.tee != Tee::Sample {
            forms.extend(values.iter().filter_map(|value| hex::decode(value).ok()).map(|bytes| json!(STANDARD.encode(bytes))));
        }
        if tee::is_version(claim) && self.tee != Tee::Sample {
            forms.extend(values.iter().filter_map(|value| value.parse::<u8>().ok()).map(|number| json!(number)));
        }
        forms
    }
}
