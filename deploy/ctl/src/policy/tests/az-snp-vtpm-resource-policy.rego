# Releases resources to one image with one initdata. Everything else is denied.
# For more workloads join their lists of grants; the rules are the same for all.
package policy

import rego.v1

default allow := false

allow if {
	data.plugin == "resource"
	input.submods.cpu0["ear.status"] == "affirming"
	some grant in grants
	path in grant.resources
	every claim in grant.claims {
		holds(claim)
	}
}

evidence := input.submods.cpu0["ear.veraison.annotated-evidence"]

holds(claim) if {
	some place in claim.paths
	object.get(evidence, place, null) in claim.values
}

path := concat("/", data["resource-path"]) if is_array(data["resource-path"])

path := data["resource-path"] if is_string(data["resource-path"])

grants := [
  {
    "claims": [
      {
        "claim": "measurement",
        "paths": [
          [
            "az-snp-vtpm",
            "measurement"
          ]
        ],
        "values": [
          "0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c",
          "DAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM"
        ]
      },
      {
        "claim": "pcr04",
        "paths": [
          [
            "az-snp-vtpm",
            "tpm",
            "pcr04"
          ]
        ],
        "values": [
          "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a"
        ]
      },
      {
        "claim": "pcr09",
        "paths": [
          [
            "az-snp-vtpm",
            "tpm",
            "pcr09"
          ]
        ],
        "values": [
          "0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a0a"
        ]
      },
      {
        "claim": "pcr11",
        "paths": [
          [
            "az-snp-vtpm",
            "tpm",
            "pcr11"
          ]
        ],
        "values": [
          "0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b0b",
          "0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f0f"
        ]
      },
      {
        "claim": "reported_tcb_snp",
        "paths": [
          [
            "az-snp-vtpm",
            "reported_tcb_snp"
          ]
        ],
        "values": [
          "8",
          8
        ]
      },
      {
        "claim": "initdata",
        "paths": [
          [
            "init_data"
          ]
        ],
        "values": [
          "81cf61bcf1775feb6314d0f27769c7753a51203624174110d5a4574fc3fd10b9"
        ]
      }
    ],
    "resources": [
      "default/key/1"
    ]
  }
]
