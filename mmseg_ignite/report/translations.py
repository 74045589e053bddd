"""Every text of the report in English and Korean, and the Korean names of tissues.

Korean pathology terms follow the usage of the Korean Society of Pathologists; class names keep the English beside them,
since reports and papers name them so.
"""

from markupsafe import Markup, escape

LANGUAGES = ('en', 'ko')
CLASS_NAMES = {
    'Background': '배경',
    'Tumor epithelium': '종양 상피',
    'Reactive epithelium': '반응성 상피',
    'Stroma': '기질',
    'Inflammation': '염증',
    'Alveolar tissue': '폐포 조직',
    'Fatty tissue': '지방 조직',
    'Necrotic tissue': '괴사 조직',
    'Erythrocytes': '적혈구',
    'Bronchial epithelium': '기관지 상피',
    'Mucus/Plasma/Fluids': '점액/혈장/체액',
    'Cartilage/Bone': '연골/뼈',
    'Macrophages': '대식세포',
    'Muscle': '근육',
    'Liver': '간',
    'Keratinization': '각질화',
    'Tumor': '종양',
    'Stroma + Inflammation': '기질 + 염증',
    'Stroma and inflammation': '기질 + 염증',
    'Necrotic': '괴사',
    'Necrosis': '괴사',
    'Rest': '나머지',
}

TEXTS = {
    'title': ('Tissue segmentation report', '조직 분할 평가 보고서'),
    'skip': ('Skip to the figures', '본문으로 건너뛰기'),
    'language': ('Language', '언어'),
    'palette': ('Colours', '색상'),
    'palette_official': ('Official', '공식'),
    'palette_safe': ('Colour-blind safe', '색각 이상 배려'),
    'nav': ('Sections', '목차'),
    'overview': ('Overview', '요약'),
    'classes': ('Classes', '클래스별'),
    'published': ('Published protocol', '논문 방식'),
    'confusion': ('Confusion', '혼동 행렬'),
    'strata': ('Subgroups', '하위 집단'),
    'calibration': ('Calibration', '확률 보정'),
    'boundary': ('Boundaries', '경계'),
    'training': ('Training', '학습 곡선'),
    'gallery': ('Regions', '관심 영역'),
    # the run
    'config': ('Config', '설정 파일'),
    'checkpoint': ('Checkpoint', '체크포인트'),
    'split': ('Part', '데이터 구분'),
    'protocol': ('Split protocol', '데이터 분할 방식'),
    'rois': ('Regions (ROIs)', '관심 영역(ROI)'),
    'patients': ('Patients', '환자'),
    'predictions': ('Predictions', '예측 폴더'),
    'seen': ('Predicted on', '예측 영상'),
    'with_context': ('image with surrounding tissue', '주변 조직을 포함한 영상'),
    'pixels_scored': ('Pixels scored', '평가 픽셀'),
    # headline figures: what each averages
    'mIoU_note': ('mean of the {n} classes present in the ground truth', '정답에 있는 {n}개 클래스의 평균'),
    'mDice_note': ('mean of the {n} classes present in the ground truth', '정답에 있는 {n}개 클래스의 평균'),
    'aAcc_note': ('share of annotated pixels that are right', '주석 픽셀 중 맞은 비율'),
    'fwIoU_note': ('IoU of the classes, weighted by their pixels', '픽셀 수로 가중한 클래스 IoU'),
    'kappa_note': ("Cohen's kappa: agreement beyond chance, at most 1", '코헨 카파: 우연을 넘는 일치도, 최대 1'),
    'mIoU_all_classes_note': (
        'mean of all classes in truth or prediction; one only predicted counts 0',
        '정답이나 예측에 나온 모든 클래스의 평균; 예측에만 있으면 0',
    ),
    'mDice_all_classes_note': (
        'mean of all classes in truth or prediction; one only predicted counts 0',
        '정답이나 예측에 나온 모든 클래스의 평균; 예측에만 있으면 0',
    ),
    'all_classes': ('over all classes', '전체 클래스'),
    'interval': ('{level} % interval', '{level} % 신뢰구간'),
    'interval_note': (
        'Intervals: {level} %, percentile bootstrap over {patients} patients ({samples} samples). With few patients they are '
        'too narrow rather than too wide.',
        '신뢰구간: {level} %, 환자 {patients}명을 단위로 한 백분위 부트스트랩({samples}회). '
        '환자가 적으면 실제보다 좁게 나올 수 있습니다.',
    ),
    'interval_note_roi': (
        'Intervals: {level} %, percentile bootstrap over {patients} regions ({samples} samples): the patients are not '
        'known, so they are too narrow.',
        '신뢰구간: {level} %, 영역 {patients}개를 단위로 한 백분위 부트스트랩({samples}회). '
        '환자를 알 수 없어 실제보다 좁습니다.',
    ),
    'means_note': (
        'A mean need not lie in the middle of its interval: samples that lack a class are averaged over the others.',
        '클래스 평균은 신뢰구간의 가운데에 있지 않을 수 있습니다. 어떤 클래스가 빠진 표본은 나머지로 평균합니다.',
    ),
    'few_patients': (
        'Only {patients} patients: the intervals are not reliable.',
        '환자가 {patients}명뿐이므로 신뢰구간을 믿을 수 없습니다.',
    ),
    # tables
    'class': ('Class', '클래스'),
    'group': ('Group', '묶음'),
    'IoU': ('IoU', 'IoU'),
    'Dice': ('Dice', 'Dice'),
    'Precision': ('Precision', '정밀도'),
    'Recall': ('Recall', '재현율'),
    'pixels': ('Pixels, truth', '정답 픽셀'),
    'predicted_pixels': ('Pixels, predicted', '예측 픽셀'),
    'classes_note': (
        'Percent. The bar is the score, the line across it the {level} % interval. A class without ground truth has no '
        'score and counts in no mean. Headings sort.',
        '단위 %. 막대는 점수, 가로선은 {level} % 신뢰구간입니다. 정답에 없는 클래스는 점수가 없고 '
        '평균에도 들어가지 않습니다. 제목을 누르면 정렬됩니다.',
    ),
    'few_note': (
        'Intervals marked † are over fewer than {n} patients and are not reliable; with one patient there is none.',
        '† 표시한 신뢰구간은 환자가 {n}명 미만이라 믿기 어렵고, 한 명이면 표시하지 않습니다.',
    ),
    'show_absent': ('Show absent classes ({n})', '없는 클래스 보기({n})'),
    'scroll_hint': ('The table continues to the side: scroll or swipe.', '표가 옆으로 이어집니다. 밀어서 보세요.'),
    'seen_patients': (
        '{n} of {m} test patients were used to train or to choose this checkpoint; these scores are too high.',
        '시험 환자 {m}명 중 {n}명이 이 체크포인트의 학습이나 선택에 쓰였으므로, 점수가 실제보다 높습니다.',
    ),
    'seen_patients_list': ('Patients: {names}', '환자: {names}'),
    'shift': ('Shift', '이동 조건'),
    'shift_note': (
        'The images were recoloured as if another laboratory had stained and another scanner had read them ({kind}), then '
        'blurred and compressed. These scores show how well the model holds, not how well it does on the original images.',
        '다른 기관에서 염색하고 다른 스캐너로 읽은 것처럼 영상의 색을 바꾸고({kind}) 흐리게 한 뒤 압축했습니다. '
        '이 점수는 원본 영상의 성능이 아니라 모델의 견고함을 보여 줍니다.',
    ),
    # provenance
    'provenance': ('Provenance', '출처'),
    'provenance_note': (
        'What made these figures. Checksums are SHA-256, cut short: point at one to see all of it; a click selects it whole.',
        '이 수치를 만든 조건입니다. 체크섬은 줄여 표시한 SHA-256이며, 가리키면 전체가 보이고 누르면 전체가 선택됩니다.',
    ),
    'version': ('mmseg_ignite', 'mmseg_ignite'),
    'date': ('Date (UTC)', '날짜(UTC)'),
    'seed': ('Seed', '시드'),
    'command': ('Command', '명령'),
    'config_sha256': ('Config', '설정 파일'),
    'checkpoint_sha256': ('Checkpoint', '체크포인트'),
    'data_sha256': ('Index of the data', '데이터 색인'),
    # folds
    'folds': ('Folds', '교차 검증'),
    'folds_note': (
        'Each fold is scored on its own patients, which its training has not seen. SD is the standard deviation over the '
        'folds (n − 1). The figures above are of all regions pooled, so they differ from the mean of the folds.',
        '각 폴드는 학습에 쓰지 않은 환자로 평가했습니다. SD는 폴드 간 표준편차(n − 1)입니다. '
        '위의 수치는 모든 영역을 합쳐 계산하므로 폴드 평균과 다릅니다.',
    ),
    'ensemble_note': (
        'The ensemble of all folds is scored on the test part, so on other patients: its scores and those of the folds do '
        'not compare directly.',
        '모든 폴드의 앙상블은 시험 데이터(다른 환자)로 평가했으므로 폴드의 점수와 직접 비교할 수 없습니다.',
    ),
    'fold': ('Fold', '폴드'),
    'sd': ('SD', '표준편차'),
    'ensemble': ('Ensemble, test part', '앙상블, 시험 데이터'),
    'absent': ('not in the ground truth', '정답에 없음'),
    'published_note': (
        'As published: one confusion matrix of all test pixels, unannotated left out; ground truth of Background left out, '
        'pixels wrongly called Background kept; Dice in percent.',
        '논문과 같은 방식: 모든 시험 픽셀의 혼동 행렬 하나에서 미주석 픽셀과 정답이 배경인 행을 빼고 '
        '(배경으로 잘못 예측한 열은 유지) 구한 Dice(%)입니다.',
    ),
    'micro_dice': ('All pixels pooled', '전체 픽셀 통합'),
    'mean_dice': ('Mean of classes', '클래스 평균'),
    'sixteen': ('Single classes', '개별 클래스'),
    'six': ('Groups', '묶음'),
    'groupings': ('Groupings', '클래스 묶음'),
    'groupings_note': (
        'Classes merged before counting, Background scored as any other.',
        '클래스를 합친 뒤 계산했으며, 배경도 다른 클래스처럼 평가합니다.',
    ),
    'mean': ('Mean', '평균'),
    # confusion
    'confusion_note': (
        'Rows are ground truth, columns the prediction: on the diagonal (blue) what is right, off it (orange) what was '
        'taken for what. The small figure is the number of pixels. Point at a cell, or move with the arrow keys.',
        '행은 정답, 열은 예측입니다. 대각선(파랑)은 맞은 것, 그 밖(주황)은 잘못 본 것입니다. 작은 숫자는 픽셀 수입니다. '
        '칸을 가리키거나 화살표 키로 이동하세요.',
    ),
    'rows': ('By truth (rows)', '행 정규화'),
    'columns': ('By prediction (columns)', '열 정규화'),
    'absolute': ('Pixels', '픽셀 수'),
    'normalise': ('Show', '표시'),
    'truth_axis': ('ground truth', '정답'),
    'prediction_axis': ('prediction', '예측'),
    'cell': (
        '{truth} → {prediction}: {row} of the truth, {column} of the prediction, {pixels} px',
        '{truth} → {prediction}: 정답의 {row}, 예측의 {column}, {pixels} px',
    ),
    'cell_none': ('Point at a cell for its figures.', '칸을 가리키면 수치가 나옵니다.'),
    # strata
    'strata_note': (
        'Means are over the classes present in the subgroup, which differ: compare with care where regions or patients '
        'are few.',
        '평균은 그 집단에 있는 클래스만의 평균이라 구성이 서로 다릅니다. 영역이나 환자가 적으면 비교에 주의하세요.',
    ),
    'organ': ('Organ', '장기'),
    'scanner': ('Scanner', '스캐너'),
    'source': ('Source', '기관'),
    'specimen_type': ('Specimen', '검체 종류'),
    'histological_subtype': ('Histological subtype', '조직학적 아형'),
    'patient': ('Patient', '환자'),
    'um_per_px': ('Resolution', '해상도'),
    'classes_present': ('Classes', '클래스 수'),
    # calibration and boundary
    'reliability': ('Reliability', '신뢰도 도표'),
    'reliability_note': (
        'Dots on the dashed line: of pixels predicted with a confidence of 80 %, 80 % are right. Below it the network is '
        'overconfident. The area of a dot is its share of the pixels.',
        '점이 점선 위에 있으면 확신도 80 %인 픽셀의 80 %가 맞다는 뜻입니다. 점선 아래는 과신입니다. '
        '점의 넓이는 픽셀 비율입니다.',
    ),
    'ece': ('Expected calibration error', '기대 보정 오차(ECE)'),
    'confidence': ('confidence (%)', '확신도 (%)'),
    'accuracy': ('right (%)', '정확도 (%)'),
    'entropy': ('Errors by uncertainty', '불확실성별 오류'),
    'entropy_note': (
        'Share of wrong pixels by the entropy of their prediction. Where the line rises, uncertainty finds the errors.',
        '예측 엔트로피에 따른 오류 픽셀 비율입니다. 선이 올라가면 불확실성이 오류를 짚어 낸다는 뜻입니다.',
    ),
    'entropy_axis': ('entropy (1: all classes alike)', '엔트로피(1: 모든 클래스가 같음)'),
    'error_axis': ('wrong (%)', '오류 (%)'),
    'boundary_note': (
        'Boundaries within {tolerance} µm of each other agree; percent.',
        '{tolerance} µm 이내의 경계는 일치로 봅니다. 단위 %.',
    ),
    'boundary_F1': ('Boundary F1', '경계 F1'),
    'NSD': ('Surface Dice (NSD)', '표면 Dice(NSD)'),
    # curves
    'loss': ('Training loss, total', '전체 학습 손실'),
    'cross_entropy': ('Cross-entropy', '교차 엔트로피'),
    'dice': ('Dice loss', 'Dice 손실'),
    'lr': ('Learning rate', '학습률'),
    'validation': ('Validation (%)', '검증 (%)'),
    'iteration': ('iteration', '반복 횟수'),
    # gallery
    'gallery_note': (
        'Every test region: tissue with the labels over it. Switch the panels, move the opacity, and click a picture to '
        'look closer: all panels zoom together. The mIoU of a region is the mean of the classes present in it.',
        '모든 시험 영역을 조직 위에 레이블을 겹쳐 보여 줍니다. 보기와 불투명도를 바꾸고, 그림을 누르면 확대됩니다 '
        '(모든 화면이 함께 움직입니다). 영역의 mIoU는 그 영역에 있는 클래스의 평균입니다.',
    ),
    'panels': ('Panels', '보기'),
    'image': ('Tissue (H&E)', '조직(H&E)'),
    'truth': ('Ground truth', '정답'),
    'prediction': ('Prediction', '예측'),
    'error': ('Errors', '오류'),
    'opacity': ('Opacity', '불투명도'),
    'order': ('Order', '정렬'),
    'worst': ('Worst first', '낮은 점수순'),
    'best': ('Best first', '높은 점수순'),
    'by_name': ('By name', '이름순'),
    'legend': ('Classes', '클래스'),
    'legend_hint': (
        'Click hides or shows a class, Shift-click shows it alone.',
        '클릭하면 숨기거나 보이고, Shift+클릭하면 그것만 보입니다.',
    ),
    'all': ('All', '모두'),
    'none': ('None', '없음'),
    'wrong': ('wrong', '틀림'),
    'right': ('right', '맞음'),
    'unlabelled_note': (
        'Tissue in its H&E colours is not annotated, or its class is hidden. In ground truth and prediction, near-white or '
        'light gray is Background.',
        'H&E 염색 색이 그대로 보이는 조직은 주석이 없거나 숨긴 클래스입니다. 정답과 예측에서 흰색에 가깝거나 옅은 회색은 '
        '배경입니다.',
    ),
    'mistaken': ('Mistaken most', '가장 많이 혼동'),
    'of_pixels': ('{share} % of the annotated pixels', '주석 픽셀의 {share} %'),
    'per_class': ('Scores by class', '클래스별 점수'),
    'enlarge': ('{roi}: {panel}, enlarge', '{roi}: {panel}, 확대'),
    'close': ('Close', '닫기'),
    'previous': ('Previous region', '이전 영역'),
    'next': ('Next region', '다음 영역'),
    'zoom_hint': (
        'wheel or + − zooms, drag or arrows move, 0 fits',
        '휠 또는 + −: 확대/축소, 끌기 또는 화살표: 이동, 0: 맞춤',
    ),
    'at_pointer': ('truth {truth} · prediction {prediction}', '정답 {truth} · 예측 {prediction}'),
    'nothing': ('no prediction', '예측 없음'),
    'region': ('Region', '영역'),
    'worst_rois': ('Worst regions', '점수가 낮은 영역'),
    'mIoU': ('mIoU', 'mIoU'),
    'mDice': ('mDice', 'mDice'),
    'aAcc': ('aAcc', 'aAcc'),
    'unannotated': ('not annotated', '주석 없음'),
    'too_old': (
        'This browser is too old to unpack the label maps: use a version of 2023 or later.',
        '브라우저가 오래되어 레이블을 풀 수 없습니다. 2023년 이후 버전을 쓰세요.',
    ),
    'footer': (
        'Made by mmseg_ignite; nothing is loaded from elsewhere.',
        'mmseg_ignite가 만들었으며, 외부에서 불러오는 것은 없습니다.',
    ),
}


def both(key: str, **values: object) -> Markup:
    """A text in both languages, of which the style sheet shows one; ``values`` are escaped.

    A key that has no text (a column of someone's own table) is shown as it is.
    """
    if key not in TEXTS:
        return escape(key.replace('_', ' '))
    parts = zip(LANGUAGES, TEXTS[key])
    return Markup('').join(
        Markup('<span lang="{}">{}</span>').format(language, Markup(text).format(**values)) for language, text in parts
    )


def class_name(name: str) -> Markup:
    """A class's name: English, or Korean with the English beside it."""
    korean = CLASS_NAMES.get(name)
    if korean is None:
        return escape(name)
    form = '<span lang="en">{0}</span><span lang="ko">{1} <small>{0}</small></span>'
    return Markup(form).format(name, korean)
