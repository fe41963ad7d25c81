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
      },
      {
        "claim": "rtmr_2",
        "paths": [
          [
            "tdx",
            "quote",
            "body",
            "rtmr_2"
          ]
        ],
        "values": [
          "0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c"
        ]
      },
      {
        "claim": "tcb_status",
        "paths": [
          [
            "tdx",
            "tcb_status"
          ]
        ],
        "values": [
          "UpToDate"
        ]
      },
      {
        "claim": "initdata",
        "paths": [
          [
            "tdx",
            "quote",
            "body",
            "rtmr_3"
          ]
        ],
        "values": [
          "40a659c23c66993d93e23934e79f47a8a13ee32d44185a4b4e14f9cb27693c042dbb729118a5203775f8c5fae0c8311e"
        ]
      }
    ],
    "resources": [
      "default/key/1"
    ]
  }
]
