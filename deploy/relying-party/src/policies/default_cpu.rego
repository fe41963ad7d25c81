# Nothing is trusted but what reference values name. The numbers are AR4SI's: 2 to 31 affirm, 32 to 95 warn, from 96 on contradict.
#
# Sample evidence is written by whoever likes to, so its executables and configuration never affirm.
package policy

import rego.v1

# A verifier does not recognize the hardware or firmware.
default hardware := 97

# Executables are not recognized.
default executables := 33

# The configuration is not known.
default configuration := 36

trust_claims := {
	"configuration": configuration,
	"executables": executables,
	"hardware": hardware,
}

hardware := 2 if input.sample.svn in query_reference_value("svn")

extensions := [{
	"name": "ear.trustee.identifiers",
	"key": -18,
	"value": {"validated": identifiers},
}]

images := [image |
	some container in input.init_data_claims.agent_policy_claims.containers
	image := container.OCI.Annotations["io.kubernetes.cri.image-name"]
]

identifiers := {"container_images": images} if {
	count(images) > 0
} else := {}
