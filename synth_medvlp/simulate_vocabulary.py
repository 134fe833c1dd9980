"""What each release calls the simulated findings: CheXpert's 14 classes, ChestX-ray14's, and PadChest's label names."""

from synth_medvlp.findings import DENSE, FAINT, KINDS, Finding

CHEXPERT = {
    "cardiomegaly": ("Cardiomegaly", "Enlarged Cardiomediastinum"), "pleural_effusion": ("Pleural Effusion",),
    "pneumothorax": ("Pneumothorax",), "consolidation": ("Consolidation", "Lung Opacity"),
    "edema": ("Edema", "Lung Opacity"), "atelectasis": ("Atelectasis", "Lung Opacity"), "nodule": ("Lung Lesion",),
    "mass": ("Lung Lesion",), "granuloma": ("Lung Lesion",), "rib_fracture": ("Fracture",),
    "pleural_thickening": ("Pleural Other",), "tortuous_aorta": ("Enlarged Cardiomediastinum",),
    "pacemaker": ("Support Devices",), "central_line": ("Support Devices",), "endotracheal_tube": ("Support Devices",),
    "feeding_tube": ("Support Devices",),
}  # fmt: skip
CHEXPERT_DEVICES = frozenset(name for name, kind in KINDS.items() if kind.device)  # do not end "No Finding"

_NIH = {
    "cardiomegaly": "Cardiomegaly", "pleural_effusion": "Effusion", "pneumothorax": "Pneumothorax", "edema": "Edema",
    "atelectasis": "Atelectasis", "nodule": "Nodule", "mass": "Mass", "hiatal_hernia": "Hernia",
    "emphysema": "Emphysema", "fibrosis": "Fibrosis", "pleural_thickening": "Pleural_Thickening",
}  # fmt: skip
# The eight classes of the release's box table -> the word that it uses.
NIH_BOXES = {name: name for name in (
    "Atelectasis", "Cardiomegaly", "Effusion", "Mass", "Nodule", "Pneumonia", "Pneumothorax")} | {
    "Infiltration": "Infiltrate"}  # fmt: skip

_PADCHEST = {
    "cardiomegaly": ("cardiomegaly",), "pleural_effusion": ("pleural effusion",), "pneumothorax": ("pneumothorax",),
    "consolidation": ("consolidation",), "edema": ("edema",), "atelectasis": ("atelectasis",), "nodule": ("nodule",),
    "mass": ("mass",), "granuloma": ("calcified granuloma",), "rib_fracture": ("rib fracture", "fracture"),
    "hiatal_hernia": ("hiatal hernia",), "emphysema": ("emphysema", "COPD signs", "flattened diaphragm"),
    "fibrosis": ("pulmonary fibrosis",), "pleural_thickening": ("pleural thickening",), "scoliosis": ("scoliosis",),
    "tortuous_aorta": ("aortic elongation",), "pacemaker": ("pacemaker",),
    "central_line": ("catheter", "central venous catheter"), "endotracheal_tube": ("endotracheal tube",),
    "feeding_tube": ("NSG tube",), "sternal_wires": ("sternotomy", "suture material"),
}  # fmt: skip


def nih_labels(findings: list[Finding]) -> set[str]:
    """Classes of ChestX-ray14. A faint consolidation is an infiltration there, a dense one also pneumonia."""
    found = {_NIH[f.name] for f in findings if f.name in _NIH}
    for f in findings:
        if f.name == "consolidation":
            found |= {"Infiltration"} if f.extent < FAINT else {"Consolidation"}
            found |= {"Pneumonia"} if f.extent > DENSE else set()
    return found


def padchest_labels(findings: list[Finding]) -> list[str]:
    """Label names of PadChest, the finer ones included; [] for a normal radiograph."""
    found: list[str] = []
    for f in findings:
        found += _PADCHEST[f.name]
        finer = {
            "consolidation": "pneumonia" if f.extent > DENSE else "",
            "pleural_thickening": "apical pleural thickening" if f.place == "apical" else "",
            "tortuous_aorta": "supra aortic elongation" if f.extent > 0.6 else "",
            "pacemaker": "dual chamber device" if f.extent > 0.35 else "single chamber device",
            "central_line": "central venous catheter via jugular vein" if f.place == "jugular" else "",
            "emphysema": "bullas" if f.extent > 0.6 else "",
        }.get(f.name, "")
        found += [finer] if finer else []
    return list(dict.fromkeys(found))
