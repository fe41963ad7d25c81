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
	evidence.init_data in grant.init_data
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
        "claim": "mr_td",
        "paths": [
          [
            "tdx",
            "quote",
            "body",
            "mr_td"
          ]
        ],
        "values": [
          "0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c"
        ]
      },
      {
        "claim": "rtmr_1",
        "paths": [
          [
            "tdx",
            "quote",
            "body",
            "rtmr_1"
          ]
        ],
        "values": [
          "0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c"
        ]
      }
    ],
    "init_data": [
      "de13bc5f55d5ac001d039625810afd56336b0a9b7ba5eb547d294368d639c53300000000000000000000000000000000"
    ],
    "resources": [
      "default/key/1"
    ]
  }
]
