"""Vocabulary of the simulated CT reports: noun phrases of each finding in English and Spanish, sentences, denials.

Placeholders: {mm} {cm} size, {lobe} place of lung findings, {side}, {sev} mild/moderate/severe, {size}
small/moderate/large, {level} rib or vertebra, {form}, {artery}, {part} of the aorta, {station} of lymph nodes. {sevf}
{sizef} are the feminine in Spanish. "+" at the end: takes a plural verb. All sentences are our own.
"""

# name -> noun phrases of (English, Spanish); the two of a pair say the same.
NOUNS = {
    "nodule": [
        ("a {mm} mm {form}nodule in the {lobe}", "un nódulo {form}de {mm} mm en {lobe}"),
        (
            "a {form}pulmonary nodule measuring {mm} mm in the {lobe}",
            "un nódulo pulmonar {form}que mide {mm} mm en {lobe}",
        ),
        ("a {form}nodule of {mm} mm in diameter in the {lobe}", "un nódulo {form}de {mm} mm de diámetro en {lobe}"),
    ],
    "mass": [
        ("a {cm} cm mass in the {lobe}", "una masa de {cm} cm en {lobe}"),
        (
            "a mass lesion measuring {mm} mm with spiculated contours in the {lobe}",
            "una masa de {mm} mm de contornos espiculados en {lobe}",
        ),
    ],
    "ground_glass": [
        ("ground-glass opacities in the {lobe}+", "opacidades en vidrio deslustrado en {lobe}+"),
        ("patchy areas of ground-glass density in the {lobe}+", "áreas parcheadas en vidrio deslustrado en {lobe}+"),
        (
            "a ground-glass infiltrate of {cm} cm in the {lobe}",
            "un infiltrado en vidrio deslustrado de {cm} cm en {lobe}",
        ),
    ],
    "consolidation": [
        ("a consolidation in the {lobe}", "una consolidación en {lobe}"),
        (
            "an area of consolidation of {cm} cm with air bronchograms in the {lobe}",
            "un área de consolidación de {cm} cm con broncograma aéreo en {lobe}",
        ),
        ("airspace consolidation in the {lobe}", "consolidación alveolar en {lobe}"),
    ],
    "atelectasis:linear": [
        ("linear atelectasis in the {lobe}", "atelectasia laminar en {lobe}"),
        ("band-like atelectatic changes in the {lobe}+", "cambios atelectásicos en banda en {lobe}+"),
    ],
    "atelectasis:passive": [
        ("passive atelectasis in the {lobe}", "atelectasia pasiva en {lobe}"),
        ("atelectasis of {cm} cm in the posterior {lobe}", "atelectasia de {cm} cm posterior en {lobe}"),
    ],
    "emphysema": [
        ("{sev} {form} emphysema", "enfisema {form} {sev}"),
        (
            "{form} emphysematous changes with upper lobe predominance+",
            "cambios enfisematosos de tipo {form} de predominio en lóbulos superiores+",
        ),
    ],
    "fibrosis": [
        ("fibrotic bands in the {apex}+", "bandas fibróticas en {apex}+"),
        ("pleuroparenchymal sequela changes in the {apex}+", "cambios residuales pleuroparenquimatosos en {apex}+"),
        ("linear scarring in the {apex}", "cicatrices lineales en {apex}+"),
    ],
    "bronchiectasis": [
        ("{sev} bronchiectasis in the {lobe}", "bronquiectasias {sevf}s en {lobe}+"),
        ("tubular bronchiectatic changes in the {lobe}+", "bronquiectasias tubulares en {lobe}+"),
    ],
    "peribronchial_thickening": [
        ("{sev} peribronchial thickening", "engrosamiento peribronquial {sev}"),
        ("bilateral bronchial wall thickening", "engrosamiento bilateral de paredes bronquiales"),
    ],
    "septal_thickening": [
        ("interlobular septal thickening in the {lobe}", "engrosamiento de septos interlobulillares en {lobe}"),
        ("{sev} smooth interlobular septal thickening", "engrosamiento septal interlobulillar liso {sev}"),
    ],
    "mosaic_attenuation": [
        ("a mosaic attenuation pattern in both lungs", "un patrón de atenuación en mosaico bilateral"),
        ("mosaic perfusion", "perfusión en mosaico"),
    ],
    "pleural_effusion": [
        ("a {size} {side} pleural effusion", "derrame pleural {side} {size}"),
        ("{side} pleural effusion of {mm} mm in depth", "derrame pleural {side} de {mm} mm de espesor"),
        ("{size} {side} pleural fluid", "líquido pleural {side} {size}"),
    ],
    "pneumothorax": [
        ("a {size} {side} pneumothorax", "neumotórax {side} {size}"),
        ("a {side} pneumothorax of {mm} mm in depth", "neumotórax {side} de {mm} mm de profundidad"),
    ],
    "cardiomegaly": [("{sev} cardiomegaly", "cardiomegalia {sevf}"), ("cardiomegaly", "cardiomegalia")],
    "pericardial_effusion": [
        ("a {size} pericardial effusion", "derrame pericárdico {size}"),
        ("pericardial effusion measuring {mm} mm", "derrame pericárdico de {mm} mm"),
    ],
    "coronary_calcification": [
        ("{sev} calcifications in the {artery} artery+", "calcificaciones {sevf}s en la arteria {artery}+"),
        (
            "calcified atheromatous plaques in the {artery} artery+",
            "placas de ateroma calcificadas en la arteria {artery}+",
        ),
    ],
    "aortic_calcification": [
        ("calcified atheromatous plaques in the {part}+", "placas de ateroma calcificadas en {part}+"),
        ("{sev} wall calcifications in the {part}+", "calcificaciones parietales {sevf}s en {part}+"),
    ],
    "aortic_aneurysm": [
        (
            "aneurysmal dilatation of the ascending aorta measuring {mm} mm",
            "dilatación aneurismática de la aorta ascendente de {mm} mm",
        ),
        ("an ascending aortic aneurysm of {cm} cm", "aneurisma de aorta ascendente de {cm} cm"),
    ],
    "pulmonary_embolism": [
        ("an embolic filling defect in the {vessel}", "un defecto de repleción embólico en {vessel}"),
        ("pulmonary embolism in the {vessel}", "tromboembolismo pulmonar en {vessel}"),
    ],
    "lymphadenopathy": [
        (
            "enlarged {station} lymph nodes, the largest with a short axis of {mm} mm+",
            "adenopatías {station}, la mayor con eje corto de {mm} mm+",
        ),
        ("{station} lymphadenopathy up to {mm} mm", "adenopatías {station} de hasta {mm} mm+"),
    ],
    "hiatal_hernia": [
        ("a {size} hiatal hernia", "hernia de hiato {sizef}"),
        ("a sliding hiatal hernia", "hernia de hiato por deslizamiento"),
    ],
    "fracture:rib": [
        ("a displaced fracture of the {level}", "fractura desplazada de la {level}"),
        ("a {level} fracture", "fractura de la {level}"),
    ],
    "fracture:vertebra": [
        ("a compression fracture of the {level} vertebra", "fractura por compresión de la vértebra {level}"),
        ("height loss of the {level} vertebral body", "pérdida de altura del cuerpo vertebral {level}"),
    ],
    "pacemaker": [
        (
            "a {side} chest wall pacemaker with its leads in the right heart",
            "marcapasos {side} con electrodos en cavidades derechas",
        ),
        ("a pacemaker on the {side}", "marcapasos {side}"),
    ],
    "central_line:port": [
        (
            "a {side} port catheter ending in the superior vena cava",
            "reservorio venoso {side} con extremo en vena cava superior",
        )
    ],
    "central_line:catheter": [("a {side} central venous catheter", "catéter venoso central {side}")],
    "surgical_material": [
        ("median sternotomy wires+", "cerclajes de esternotomía media+"),
        ("metallic suture materials in the sternum+", "material de sutura metálico en esternón+"),
    ],
}
# CT-RATE style sentences of their own, beside the frames.
SENTENCES = {
    "cardiomegaly": [
        "The heart size has increased.",
        "Heart dimensions are {sev}ly increased.",
        "The heart is {sev}ly enlarged.",
    ],
    "aortic_aneurysm": ["The diameter of the ascending aorta is {mm} mm and it is dilated."],
    "coronary_calcification": ["Calcifications are present in the {artery} artery."],
    "aortic_calcification": ["Calcific atheroma plaques are observed in the {part}."],
    "pleural_effusion": ["Between the pleural leaves, {side} pleural effusion reaching {mm} mm is observed."],
    "emphysema": ["Emphysematous changes of {form} type are observed in both lungs."],
    "fracture:vertebra": ["There is a loss of height in the {level} vertebra due to compression fracture."],
    "surgical_material": ["The patient has median sternotomy wires."],
}
FRAMES = {
    "ct-rate": {
        True: ["{Np} {is} observed.", "There {is} {np}.", "{Np} {is} seen.", "{Np} {was} detected."],
        False: ["{Np} cannot be excluded.", "There may be {np}.", "{Np} {is} suspected."],
    },
    "inspect": {
        True: ["{Np}.", "{Np}.", "There {is} {np}.", "{Np} {is} noted."],
        False: ["Possible {np}.", "Findings may represent {np}.", "{Np} cannot be excluded."],
    },
}
# BIMCV-R: (Spanish, its translation).
PAIRED_FRAMES = {
    True: [
        ("Se {observa} {np}.", "{Np} {is} observed."),
        ("Se {identifica} {np}.", "{Np} {is} identified."),
        ("{Np}.", "{Np}."),
        ("Se {aprecia} {np}.", "{Np} {is} appreciated."),
    ],
    False: [
        ("No se puede descartar {np}.", "{Np} cannot be ruled out."),
        ("Posible {np}.", "Possible {np}."),
        ("Hallazgos sugestivos de {np}.", "Findings suggestive of {np}."),
    ],
}
# Denials: findings that must be absent -> sentences (English, Spanish).
DENIALS = {
    "heart": [
        (("cardiomegaly",), ("The heart size is normal.", "Tamaño cardíaco normal.")),
        (("pericardial_effusion",), ("No pericardial effusion was detected.", "No hay derrame pericárdico.")),
        (
            ("pericardial_effusion", "pleural_effusion"),
            ("Pericardial or pleural effusion was not observed.", "Sin derrame pleural ni pericárdico."),
        ),
        (("aortic_aneurysm",), ("The thoracic aorta is of normal caliber.", "Aorta torácica de calibre normal.")),
    ],
    "mediastinum": [
        (
            ("lymphadenopathy",),
            ("No enlarged lymph nodes were observed in the mediastinum.", "No se observan adenopatías mediastínicas."),
        ),
        (
            ("lymphadenopathy",),
            (
                "No mediastinal, hilar or axillary lymphadenopathy.",
                "Sin adenopatías mediastínicas, hiliares ni axilares.",
            ),
        ),
        (("hiatal_hernia",), ("Hiatal hernia was not detected.", "Sin hernia de hiato.")),
    ],
    "lungs": [
        (
            ("nodule", "mass"),
            ("No nodule or mass was detected in either lung.", "No se observan nódulos ni masas pulmonares."),
        ),
        (("mass",), ("No mass lesion was detected in the lungs.", "No se observan masas pulmonares.")),
        (("consolidation",), ("There is no consolidation.", "Sin consolidaciones.")),
        (
            ("consolidation", "ground_glass"),
            ("No consolidation or ground-glass opacity is seen.", "Sin consolidaciones ni vidrio deslustrado."),
        ),
        (("bronchiectasis",), ("No bronchiectasis was observed.", "Sin bronquiectasias.")),
        (("emphysema",), ("There is no emphysema.", "Sin enfisema.")),
    ],
    "pleura": [
        (("pleural_effusion",), ("No pleural effusion was detected.", "Sin derrame pleural.")),
        (("pneumothorax",), ("There is no pneumothorax.", "Sin neumotórax.")),
        (
            ("pleural_effusion", "pneumothorax"),
            ("No pleural effusion or pneumothorax.", "Sin derrame pleural ni neumotórax."),
        ),
    ],
    "bones": [
        (("fracture",), ("No fracture was detected in the bone structures.", "Sin fracturas.")),
        (("fracture",), ("No vertebral compression fracture.", "Sin fracturas vertebrales por compresión.")),
    ],
}
NEUTRAL = {
    "heart": [
        (
            "Mediastinal main vascular structures are evaluated within the limits of the examination.",
            "Estructuras vasculares mediastínicas valoradas dentro de las limitaciones del estudio.",
        )
    ],
    "mediastinum": [
        ("Trachea and both main bronchi are open.", "Tráquea y bronquios principales permeables."),
        ("The central airways are patent.", "Vía aérea central permeable."),
    ],
    "lungs": [("Lung aeration is otherwise as expected.", "Resto del parénquima pulmonar sin hallazgos.")],
    "pleura": [],
    "bones": [
        (
            "In the upper abdominal sections, the liver and spleen are unremarkable.",
            "Hígado y bazo sin hallazgos en los cortes incluidos.",
        ),
        ("The spine shows age-appropriate changes.", "Columna con cambios propios de la edad."),
    ],
}
ORGANS = {
    "heart": (
        "cardiomegaly",
        "pericardial_effusion",
        "coronary_calcification",
        "aortic_calcification",
        "aortic_aneurysm",
        "pulmonary_embolism",
        "pacemaker",
        "central_line",
        "surgical_material",
    ),
    "mediastinum": ("lymphadenopathy", "hiatal_hernia"),
    "lungs": (
        "mass",
        "nodule",
        "consolidation",
        "ground_glass",
        "atelectasis",
        "emphysema",
        "fibrosis",
        "bronchiectasis",
        "peribronchial_thickening",
        "septal_thickening",
        "mosaic_attenuation",
    ),
    "pleura": ("pleural_effusion", "pneumothorax"),
    "bones": ("fracture",),
}
NORMAL = [
    "Thoracic CT examination within normal limits.",
    "No pathological finding was detected.",
    "Findings within normal limits.",
]
NORMAL_PAIR = [
    ("Estudio sin hallazgos patológicos.", "Study without pathological findings."),
    ("TC de tórax dentro de la normalidad.", "Chest CT within normal limits."),
]
NO_EMBOLISM = [
    "No evidence of pulmonary embolism.",
    "No pulmonary embolism.",
    "Negative for acute pulmonary embolism.",
    "No filling defects to suggest pulmonary embolism.",
]
NO_ACUTE = ["No acute findings in the chest.", "The lungs are clear.", "No other acute abnormality."]
EN = {
    "right": "right",
    "left": "left",
    "bilateral": "bilateral",
    "upper_lobe": "upper lobe",
    "middle_lobe": "middle lobe",
    "lower_lobe": "lower lobe",
    "lad": "left anterior descending coronary",
    "circumflex": "circumflex coronary",
    "rca": "right coronary",
    "arch": "aortic arch",
    "descending": "descending thoracic aorta",
    "ascending": "ascending aorta",
    "calcified": "calcified ",
    "subsolid": "ground-glass ",
    "solid": "",
    "centrilobular": "centrilobular",
    "bullous": "bullous",
}
ES = {
    "right": "derecho",
    "left": "izquierdo",
    "bilateral": "bilateral",
    "upper_lobe": "superior",
    "middle_lobe": "medio",
    "lower_lobe": "inferior",
    "lad": "descendente anterior",
    "circumflex": "circunfleja",
    "rca": "coronaria derecha",
    "arch": "el cayado aórtico",
    "descending": "la aorta descendente",
    "ascending": "la aorta ascendente",
    "calcified": "calcificado ",
    "subsolid": "en vidrio deslustrado ",
    "solid": "",
    "centrilobular": "centrolobulillar",
    "bullous": "bulloso",
}
GRADES = {
    "sev": (("mild", "moderate", "severe"), ("leve", "moderado", "severo")),
    "size": (("small", "moderate", "large"), ("pequeño", "moderado", "grande")),
    "sevf": ((), ("leve", "moderada", "severa")),
    "sizef": ((), ("pequeña", "moderada", "grande")),
}
