# Appraises az-snp-vtpm evidence: affirming if the image's measurements are among the reference values, and the hardware hides the VM.
# The numbers are AR4SI's: 2 to 31 affirm, 32 to 95 warn, from 96 on contradict.
package policy

import rego.v1

default hardware := 97

default executables := 33

default configuration := 36

trust_claims := {
	"configuration": configuration,
	"executables": executables,
	"hardware": hardware,
}

evidence := input["az-snp-vtpm"]

# What the image is.
executables := 3 if {
	measured_measurement in query_reference_value("az_snp_vtpm_measurement")
	measured_pcr04 in query_reference_value("az_snp_vtpm_pcr04")
	measured_pcr09 in query_reference_value("az_snp_vtpm_pcr09")
	measured_pcr11 in query_reference_value("az_snp_vtpm_pcr11")
}

measured_measurement := evidence.measurement

measured_pcr04 := evidence.tpm.pcr04

measured_pcr09 := evidence.tpm.pcr09

measured_pcr11 := evidence.tpm.pcr11

measured_reported_tcb_snp := evidence.reported_tcb_snp

# The verifier has followed the report's signature to AMD.
hardware := 2 if {
	evidence.measurement
	measured_reported_tcb_snp in query_reference_value("az_snp_vtpm_reported_tcb_snp")
}

# That debuggers stay outside, and that initdata is bound.
configuration := 2 if {
	input.init_data
	is_false(evidence.policy_debug_allowed)
	is_false(evidence.policy_migrate_ma)
}

is_false(value) if value == false

is_false(value) if value == "false"
