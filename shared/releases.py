"""What `make data-<dataset>` fetches: releases with addresses, licences, sizes and citations. Serves every package."""

from dataclasses import dataclass, field

PHYSIONET = "https://physionet.org/files/"
HUB = "https://huggingface.co/datasets/"
GITHUB = "https://github.com/"
MERL_COMMIT = "7a931dbd2dbf347a9745edd3b6729820cc518a90"

# SHA-256 of MERL's split files at MERL_COMMIT (the repository publishes no checksums).
MERL_SHA256 = {
    "chapman/chapman_test.csv": "a51df50676226bd7697845fc15036356a56af9379c3efaa917f1dbff274d1236",
    "chapman/chapman_train.csv": "8cb268dd4a1e87ea527c4ad57f23baafc4ba72c08edf0ffe2d13cbf6aa299572",
    "chapman/chapman_val.csv": "2f611e3447008d36eaa10a33675127d57c90a156894577167a7932057a7ef8a8",
    "icbeb/icbeb_test.csv": "ef85abba57aedba8bf857cf843457b5732f68adfd27b0f45af408870d4210a7f",
    "icbeb/icbeb_train.csv": "013fa62513598e7a141d5ea810f73b6b75cdddbab25e11bcbbcdf84a18f000de",
    "icbeb/icbeb_val.csv": "17fc4f6f95aa818e147ff3b6d5c314c9ae4301989469a0488aaa19638d3e44c8",
    "ptbxl/form/ptbxl_form_test.csv": "533fc6f96c4dde42cd7e1722a0180ee405a8b22ca75225f5700fd7012049b17c",
    "ptbxl/form/ptbxl_form_train.csv": "4b2b1d0c3398b897f15a4902f993137ecb24563a223251b6319fb64ac4fd2da7",
    "ptbxl/form/ptbxl_form_val.csv": "50c614246753bda0e123528e4d79fad861e870ae17105c136c6a0776996ff6c5",
    "ptbxl/rhythm/ptbxl_rhythm_test.csv": "da18b3ecf6c8260a9986437d3a38dd522eb1aab8f5e4439d7bbaf28d172240b0",
    "ptbxl/rhythm/ptbxl_rhythm_train.csv": "ed76e6459be242953504d2a702a383bd0593b53bc2fffa941aadb11c6d192d32",
    "ptbxl/rhythm/ptbxl_rhythm_val.csv": "a6386ab392844d7cccd358f2fac8aeb0dcff0240be0a3b0e1188807d2e3ad390",
    "ptbxl/sub_class/ptbxl_sub_class_test.csv": "2394d07f10150a9853fa985d30959a348c2553207367860042d48d3108a4c013",
    "ptbxl/sub_class/ptbxl_sub_class_train.csv": "6df73dd4a5f638525c8a346614dbf5a8992d8862efeacc8d2b11efc6addcce9a",
    "ptbxl/sub_class/ptbxl_sub_class_val.csv": "b79acabc92088e400273392adb87e16be3c74695572a174efe7359f97eca1c8c",
    "ptbxl/super_class/ptbxl_super_class_test.csv": "1646fae11e3fad3f7a98a34f4af5ab0c86e64ad06eba6861cad26831a5f0f617",
    "ptbxl/super_class/ptbxl_super_class_train.csv": "81c0b53f7500107cfcf3433ad7cfcbc4622d300171f9cfc8ddeeccd5e6ee53a5",
    "ptbxl/super_class/ptbxl_super_class_val.csv": "d852fcc62edcdd4785f64cddeb24ef1c84435350bc34ccbef9b3fedfc3bd63b1",
}

# Direct links below NIH_BOX of images_001.tar.gz .. images_012.tar.gz.
NIH_BOX = "https://nihcc.box.com/shared/static/"
NIH_LINKS = (
    "vfk49d74nhbxq3nqjg0900w5nvkorp5c.gz",
    "i28rlmbvmfjbl8p2n3ril0pptcmcu9d1.gz",
    "f1t00wrtdk94satdfb9olcolqx20z2jp.gz",
    "0aowwzs5lhjrceb3qp67ahp0rd1l1etg.gz",
    "v5e3goj22zr6h8tzualxfsqlqaygfbsn.gz",
    "asi7ikud9jwnkrnkj99jnpfkjdes7l6l.gz",
    "jn1b4mw4n6lnh74ovmcjb8y48h8xj07n.gz",
    "tvpxmn7qyrgl0w8wfh9kqfjskv6nmm1j.gz",
    "upyy3ml7qdumlgk2rfcvlb9k6gvqq2pj.gz",
    "l6nilvfa9cg3s28tqv1qc1olm3gnz54p.gz",
    "hhq8fkdgvcari67vfhs7ppg2w6ni4jze.gz",
    "ioqwiy20ihqwyr8pf4c24eazhh281pbu.gz",
)


@dataclass(frozen=True)
class Release:
    """One pinned version of a data set.

    base_url: folder that holds SHA256SUMS.txt; prefix: the part of it that is fetched, left out of the local paths.
    sha256: pinned checksums by local path, where the release publishes no SHA256SUMS.txt.
    archives: folder -> link below base_url of the tar.gz of its images, where the release publishes no checksums.
    steps: what a person must do where a release needs an account, an agreement or another client; such a release is
    never fetched, `make data-<name>` prints the steps. With archives: what is left to do once these are here.
    mirror: another folder with the same files, without PhysioNet's limit on the rate of a connection.
    folders: of a data set on the hub or on GitHub (base_url below HUB, GITHUB): what is fetched of it, folders or
    files; "" = all of the hub.
    splits: split -> folders that are fetched besides, where only part of a data set on the hub may be wanted.
    n_files: how many files ending in `suffix` the complete release has (records for the ECG data sets); on GitHub only
    until the list of a commit is known.
    """

    name: str
    title: str
    base_url: str
    licence: str
    size: str
    citation: str
    n_files: int
    suffix: str = ".hea"
    prefix: str = ""
    mirror: str = ""
    sha256: dict[str, str] = field(default_factory=dict)
    archives: dict[str, str] = field(default_factory=dict)
    steps: tuple[str, ...] = ()
    folders: tuple[str, ...] = ()
    splits: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def hub(self) -> str:
        """Name of the data set on the Hugging Face hub; "" where it is not there."""
        return self.base_url.removeprefix(HUB).strip("/") if self.base_url.startswith(HUB) else ""

    @property
    def github(self) -> str:
        """OWNER/NAME of the repository on GitHub; "" where it is not there."""
        path = self.base_url.removeprefix(GITHUB)
        return "/".join(path.split("/")[:2]) if self.base_url.startswith(GITHUB) else ""


_CREDENTIALED = (
    "create a PhysioNet account, take the CITI course 'Data or Specimens Only Research', become credentialed",
    "sign the data use agreement on the page of the data set",
)
RELEASES = {
    release.name: release
    for release in (
        Release(
            name="ptb-xl",
            title="PTB-XL 1.0.3: 21,799 12-lead ECGs of 18,869 patients at 500 and at 100 Hz, German/English reports",
            base_url=PHYSIONET + "ptb-xl/1.0.3/",
            licence="CC BY 4.0 (Creative Commons Attribution)",
            size="about 3.0 GB in 87,200 files",
            citation="Wagner et al., PTB-XL, a large publicly available electrocardiography dataset, Sci Data 7:154 "
            "(2020); PhysioNet doi:10.13026/kfzx-aw45",
            n_files=2 * 21_799,
            mirror="https://physionet-open.s3.amazonaws.com/ptb-xl/1.0.3/",
        ),
        Release(
            name="mimic-iv-ecg",
            title="MIMIC-IV-ECG 1.0: 800,035 12-lead ECGs of about 160,000 patients at 500 Hz, machine statements",
            base_url=PHYSIONET + "mimic-iv-ecg/1.0/",
            licence="ODbL 1.0 (Open Data Commons Open Database License); open access, no credentials",
            size="about 90 GB in 1,600,000 files",
            citation="Gow et al., MIMIC-IV-ECG: Diagnostic Electrocardiogram Matched Subset (version 1.0), PhysioNet "
            "(2023), doi:10.13026/4nqg-sb35",
            n_files=800_035,
            mirror="https://physionet-open.s3.amazonaws.com/mimic-iv-ecg/1.0/",
        ),
        Release(
            name="cpsc2018",
            title="CPSC2018 in the form of the PhysioNet/CinC Challenge 2021 1.0.3: 6,877 12-lead ECGs at 500 Hz",
            base_url=PHYSIONET + "challenge-2021/1.0.3/",
            prefix="training/cpsc_2018/",
            licence="CC BY 4.0 (Creative Commons Attribution)",
            size="about 1.3 GB in 13,800 files",
            citation="Liu et al., An open access database for evaluating the algorithms of ECG rhythm and morphology "
            "abnormality detection, J Med Imaging Health Inform 8:1368 (2018); Reyna et al., Will Two Do? Varying "
            "Dimensions in Electrocardiography, CinC 2021, PhysioNet doi:10.13026/34va-7q14",
            n_files=6_877,
        ),
        Release(
            name="chapman-shaoxing-ningbo",
            title="Chapman-Shaoxing-Ningbo (ecg-arrhythmia 1.0.0): 45,152 12-lead ECGs at 500 Hz, SNOMED CT codes",
            base_url=PHYSIONET + "ecg-arrhythmia/1.0.0/",
            licence="CC BY 4.0 (Creative Commons Attribution)",
            size="about 5 GB in 90,800 files",
            citation="Zheng et al., Optimal Multi-Stage Arrhythmia Classification Approach, Sci Rep 10:2898 (2020); "
            "PhysioNet doi:10.13026/wgex-er52",
            n_files=45_152,
        ),
        Release(
            name="merl-splits",
            title="Train/validation/test label tables of MERL for PTB-XL, CPSC2018 (icbeb) and CSN (chapman)",
            base_url=f"https://raw.githubusercontent.com/cheliu-computation/MERL-ICML2024/{MERL_COMMIT}/",
            prefix="finetune/data_split/",
            licence="MIT (repository); the labels are those of PTB-XL and CSN, CC BY 4.0",
            size="11 MB in 18 files",
            citation="Liu et al., Zero-Shot ECG Classification with Multimodal Learning and Test-time Clinical "
            "Knowledge Enhancement, ICML 2024",
            n_files=len(MERL_SHA256),
            suffix=".csv",
            sha256=MERL_SHA256,
        ),
        Release(
            name="mimic-cxr-jpg",
            title="MIMIC-CXR-JPG 2.1.0 with the reports of MIMIC-CXR: 377,110 chest radiographs of 65,379 patients",
            base_url=PHYSIONET + "mimic-cxr-jpg/2.1.0/",
            licence="PhysioNet Credentialed Health Data License 1.5.0",
            size="about 560 GB in 377,110 images; reports 140 MB",
            citation="Johnson et al., MIMIC-CXR, Sci Data 6:317 (2019); JPG: PhysioNet doi:10.13026/jsn5-t979",
            n_files=377_110,
            suffix=".jpg",
            steps=(
                *_CREDENTIALED,
                "wget -r -N -c -np --user NAME --ask-password https://physionet.org/files/mimic-cxr-jpg/2.1.0/",
                "the same for https://physionet.org/files/mimic-cxr/2.1.0/mimic-cxr-reports.zip; unpack it here",
                "the csv.gz tables lie beside files/",
            ),
        ),
        Release(
            name="chexpert",
            title="CheXpert 1.0: 224,316 chest radiographs of 65,240 patients, 14 labels; test set of 500 patients",
            base_url="https://stanfordaimi.azurewebsites.net/",
            licence="Stanford University Dataset Research Use Agreement",
            size="439 GB, or 11 GB as CheXpert-v1.0-small",
            citation="Irvin et al., CheXpert, AAAI 2019",
            n_files=224_316,
            suffix=".jpg",
            steps=(
                "register on the AIMI site, accept the agreement, copy the link that is mailed",
                "azcopy copy LINK . --recursive: train/, valid/, test/ and their three csv files belong here",
            ),
        ),
        Release(
            name="padchest",
            title="PadChest: 160,868 chest radiographs of 67,000 patients, 174 findings",
            base_url="https://bimcv.cipf.es/bimcv-projects/padchest/",
            licence="PadChest Dataset Research Use Agreement",
            size="about 1 TB in 160,868 images",
            citation="Bustos et al., PadChest, Med Image Anal 66:101797 (2020)",
            n_files=160_868,
            suffix=".png",
            steps=(
                "ask for access on the BIMCV page; fetch the zip files 0 .. 54 and the table of labels",
                "unpack image folder N to N/ here; PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv beside them",
            ),
        ),
        Release(
            name="nih-cxr",
            title="NIH ChestX-ray14: 112,120 frontal chest radiographs of 30,805 patients, 14 labels, 984 boxes",
            base_url=NIH_BOX,
            licence="free use with acknowledgement of the NIH Clinical Center",
            size="42 GB in 12 archives, up to twice that until they are unpacked",
            citation="Wang et al., ChestX-ray8, CVPR 2017",
            n_files=112_120,
            suffix=".png",
            archives={f"images_{number:03d}": link for number, link in enumerate(NIH_LINKS, 1)},
            steps=(
                "fetch Data_Entry_2017_v2020.csv, BBox_List_2017.csv, train_val_list.txt, test_list.txt from "
                "https://nihcc.app.box.com/v/ChestXray-NIHCC (they have no direct links); put them beside images_001/",
            ),
        ),
        Release(
            name="rsna-pneumonia",
            title="RSNA Pneumonia Detection Challenge: 26,684 labelled chest radiographs (of ChestX-ray14), boxes",
            base_url="https://www.kaggle.com/c/rsna-pneumonia-detection-challenge/",
            licence="rules of the challenge: academic and non-commercial use",
            size="3.7 GB in 29,684 DICOM files",
            citation="Shih et al., Radiol Artif Intell 1:e180041 (2019)",
            n_files=26_684,
            suffix=".dcm",
            steps=(
                "accept the rules on Kaggle; kaggle competitions download rsna-pneumonia-detection-challenge",
                "unpack here; pneumonia-challenge-dataset-mappings_2018.json from the RSNA page gives the patients",
            ),
        ),
        Release(
            name="siim-acr",
            title="SIIM-ACR Pneumothorax Segmentation: 12,047 chest radiographs (of ChestX-ray14), run-length masks",
            base_url="https://www.kaggle.com/c/siim-acr-pneumothorax-segmentation/",
            licence="rules of the challenge: academic and non-commercial use",
            size="2 GB in 12,089 DICOM files",
            citation="SIIM-ACR Pneumothorax Segmentation, Kaggle 2019",
            n_files=12_047,
            suffix=".dcm",
            steps=("fetch dicom-images-train/ and train-rle.csv with a Kaggle account, unpack here",),
        ),
        Release(
            name="covidx-cxr2",
            title="COVIDx CXR-2: 29,986 chest radiographs, COVID-19 or not, of several collections",
            base_url="https://www.kaggle.com/datasets/andyczhao/covidx-cxr2/",
            licence="licences of its sources, see its page",
            size="about 12 GB in 29,986 images",
            citation="Wang et al., COVID-Net, Sci Rep 10:19549 (2020)",
            n_files=29_986,
            suffix=".png",
            steps=(
                "kaggle datasets download andyczhao/covidx-cxr2; unpack here: train/, val/, test/, train.txt, val.txt, "
                "test.txt (a later version of the set has other images: the split files say what belongs)",
            ),
        ),
        Release(
            name="covid-rural",
            title="COVID-19-AR: chest radiographs of rural patients with masks of the opacities; 221 in MAVL's lists",
            base_url=GITHUB + "haimingt/opacity_segmentation_covid_chest_X_ray/tree/HEAD/",
            prefix="covid_rural_annot/",
            licence="CC BY 4.0 (Creative Commons Attribution) for the radiographs; none is stated for the masks",
            size="some hundred MB in about 640 images, masks and outlines",
            citation="Desai et al., Sci Data 7:414 (2020); masks: Tang et al. (2020)",
            n_files=221,
            suffix=".jpg",
            folders=("jpgs", "pngs_masks", "covid_rural_patient_info.csv", "covid_rural_radiologist_notes.csv"),
        ),
        Release(
            name="hannover-cxr",
            title="COVID-19 Image Repository of Hannover Medical School: chest radiographs, 243 in its table",
            base_url=GITHUB + "ml-workgroup/covid-19-image-repository/",
            licence="CC BY 3.0 (Creative Commons Attribution)",
            size="about 50 MB",
            citation="Winther et al., doi:10.25835/0090041",
            n_files=243,
            suffix=".png",
            folders=("data.csv", "png"),
        ),
        Release(
            name="ct-rate",
            title="CT-RATE: 50,188 volumes of 25,692 non-contrast chest CTs, 21,304 patients, reports, 18 labels",
            base_url=HUB + "ibrahimhamamci/CT-RATE/",
            licence="CC BY-NC-SA 4.0; terms to be accepted on its page: research use, no redistribution",
            size="50,188 volumes (47,149 train, 3,039 valid), terabytes",
            citation="Hamamci et al., CT-RATE / CT-CLIP, arXiv 2403.17834 (2024)",
            n_files=50_188,
            suffix=".nii.gz",
            folders=("dataset/metadata", "dataset/radiology_text_reports", "dataset/multi_abnormality_labels"),
            splits={"train": ("dataset/train_fixed",), "valid": ("dataset/valid_fixed",)},
        ),
        Release(
            name="bimcv-r",
            title="BIMCV-R: 8,069 chest CTs of 5,340 patients, Spanish reports and their translations",
            base_url=HUB + "cyd0806/BIMCV-R/",
            licence="see its page; the volumes are those of BIMCV-COVID19, under its research use agreement",
            size="8,069 volumes, hundreds of gigabytes",
            citation="Chen et al., BIMCV-R, MICCAI 2024, arXiv 2403.15992",
            n_files=8_069,
            suffix=".nii.gz",
            folders=("",),
        ),
        Release(
            name="inspect",
            title="INSPECT: 23,248 CT pulmonary angiograms of 19,402 patients, impressions, outcome labels",
            base_url="https://inspect.stanford.edu/",
            licence="data use agreement of Stanford University: non-commercial research",
            size="23,248 volumes; their size stands on its page",
            citation="Huang et al., INSPECT, NeurIPS Datasets and Benchmarks 2023, arXiv 2311.10798",
            n_files=23_248,
            suffix=".nii.gz",
            steps=(
                "register on the page of the data set, accept the agreement, fetch the CT volumes and the tables",
                "volumes as NIfTI files in CTPA/ here (any folder does: they are found by file name)",
                "Final_metadata.csv, Final_splits.csv, Final_Impressions.csv and, optional, Final_labels.csv beside "
                "CTPA/; what comes as a spreadsheet is saved as csv",
            ),
        ),
    )
}
