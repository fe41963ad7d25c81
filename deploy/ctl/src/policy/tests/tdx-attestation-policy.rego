# Appraises tdx evidence: affirming if the image's measurements are among the reference values, and the hardware hides the VM.
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

evidence := input["tdx"]

# What the image is.
executables := 3 if {
	measured_mr_td in query_reference_value("tdx_mr_td")
	measured_rtmr_1 in query_reference_value("tdx_rtmr_1")
	measured_rtmr_2 in query_reference_value("tdx_rtmr_2")
}

measured_mr_td := evidence.quote.body.mr_td

measured_rtmr_1 := evidence.quote.body.rtmr_1

measured_rtmr_2 := evidence.quote.body.rtmr_2

measured_tcb_status := evidence.tcb_status

# The verifier has followed the quote's signature to Intel, and has Intel's word on the platform's firmware.
hardware := 2 if {
	evidence.quote.header.tee_type == "81000000"
	evidence.quote.header.vendor_id == "939a7233f79c4ca9940a0db3957f0607"
	is_collateral_current
	measured_tcb_status in query_reference_value("tdx_tcb_status")
}

is_collateral_current if evidence.collateral_expiration_status == "0"

# That debuggers stay outside, and that initdata is bound.
configuration := 2 if {
	evidence.quote.body.rtmr_3
	evidence.td_attributes.debug == false
}
