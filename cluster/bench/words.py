"""Common English words, most of which are one token: a prompt of n words has about n tokens."""

from __future__ import annotations

_TEXT = """
able across against almost already among answer around back become began being best between blue
body both brought call carry center change children class close color common could course cut day
develop distance down drive each earth east end even every eye fact family farm father feet field
final fine first five follow foot form four friend full gave gold got great ground grow hand hard
hear help hold horse hour idea interest just kind knew language last laugh lead leave less life line
listen live look low made man map mean men mile minute moon morning mother move music name need new
night note notice now object off old only order over page part pattern perhaps picture place plan
plant point pose press produce pull quick ran read real red remember right road room rule same say
science second seem sentence set shape ship should side since sit size slow snow song sound space
spell star state stead still stop story strong such sure system tail talk tell test think thought
three time told took town tree try two unit use very vowel walk war watch way weigh wheel which
white why wonder word world year
"""

WORDS = tuple(_TEXT.split())
